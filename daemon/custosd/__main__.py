"""`python -m custosd`."""

from custosd.cli.main import main

main()
