"""What agents are asked: each work in two wordings, and another one in the same file."""

from typing import NamedTuple


class Topic(NamedTuple):
    """A module of a project, and what may be wanted of it.

    `goal` and `again` ask for the same in other words; `other` asks for something else there.
    """

    slug: str
    goal: str
    again: str
    other: str

    @property
    def module(self) -> str:
        return f"src/{self.slug}.py"


TOPICS = (
    Topic(
        "upload",
        "Uploads in src/upload.py give up at the first error. Retry them with exponential backoff.",
        "src/upload.py gives up at the first error: failed uploads should be retried with"
        " exponential backoff.",
        "Show a progress bar in the terminal while src/upload.py sends a large video.",
    ),
    Topic(
        "invoice",
        "Round the VAT of each invoice line in src/invoice.py half up, to whole cents.",
        "src/invoice.py must round the VAT of invoice lines half up to whole cents; it is wrong.",
        "Print the customer's shipping address in the footer of the PDF made by src/invoice.py.",
    ),
    Topic(
        "session",
        "Expire login sessions after thirty idle minutes in src/session.py.",
        "src/session.py keeps login sessions for ever; let them expire after thirty idle minutes.",
        "Store cookies of src/session.py with SameSite=Strict and the Secure flag.",
    ),
    Topic(
        "search",
        "Rank exact title matches above partial matches in src/search.py.",
        "In src/search.py an exact match of the title should rank above partial matches.",
        "Cache the synonym dictionary that src/search.py loads for every query.",
    ),
    Topic(
        "thumbnail",
        "Keep the aspect ratio when src/thumbnail.py scales portrait photos.",
        "Portrait photos must keep their aspect ratio when src/thumbnail.py scales them.",
        "Strip EXIF metadata such as GPS positions from what src/thumbnail.py writes.",
    ),
    Topic(
        "calendar",
        "Handle daylight saving time in the recurring events of src/calendar.py.",
        "Recurring events shift at daylight saving time; handle that in src/calendar.py.",
        "Export src/calendar.py appointments as an iCalendar attachment.",
    ),
    Topic(
        "mailer",
        "Deduplicate bounced addresses before src/mailer.py sends the newsletter.",
        "Before the newsletter goes out, src/mailer.py must deduplicate the bounced addresses.",
        "Sign outgoing messages of src/mailer.py with DKIM keys.",
    ),
    Topic(
        "ledger",
        "Refuse ledger entries whose debit and credit sides differ, in src/ledger.py.",
        "src/ledger.py accepts unbalanced entries: refuse those whose debit and credit differ.",
        "Archive closed fiscal years of src/ledger.py to compressed files.",
    ),
    Topic(
        "crawler",
        "Respect robots.txt crawl delays for each host in src/crawler.py.",
        "The crawler ignores the crawl delay that robots.txt asks for; respect it per host"
        " in src/crawler.py.",
        "Detect the charset of downloaded pages in src/crawler.py from their meta tags.",
    ),
    Topic(
        "inventory",
        "Reserve stock atomically in src/inventory.py so that two orders cannot oversell an item.",
        "Two orders can oversell one item: reserve the stock atomically in src/inventory.py.",
        "Warn warehouse staff by e-mail when src/inventory.py sees a pallet expire.",
    ),
    Topic(
        "geocoder",
        "Fall back to the postal code centroid in src/geocoder.py when a street is unknown.",
        "When the street is unknown src/geocoder.py should fall back to the centroid of the postal"
        " code.",
        "Batch the requests of src/geocoder.py, a hundred addresses each.",
    ),
    Topic(
        "playlist",
        "Shuffle playlists in src/playlist.py without playing one artist twice in a row.",
        "Shuffling in src/playlist.py plays the same artist twice in a row: shuffle playlists"
        " without that.",
        "Import M3U files with relative paths into src/playlist.py.",
    ),
    Topic(
        "billing",
        "Prorate subscription upgrades by remaining days in src/billing.py.",
        "Upgrades of a subscription should be prorated by the remaining days, in src/billing.py.",
        "Send a dunning letter from src/billing.py after three declined cards.",
    ),
    Topic(
        "sensor",
        "Filter outliers of temperature sensors with a median window in src/sensor.py.",
        "Temperature sensors report outliers; filter them in src/sensor.py by a window's median.",
        "Encode src/sensor.py telemetry as CBOR before it is published over MQTT.",
    ),
    Topic(
        "glossary",
        "Sort glossary terms by the locale's collation in src/glossary.py, umlauts included.",
        "The glossary sorts umlauts last: sort its terms by locale collation in src/glossary.py.",
        "Link every abbreviation that src/glossary.py explains to its first use.",
    ),
    Topic(
        "backup",
        "Verify checksums of restored archives in src/backup.py before old ones are pruned.",
        "Old archives must not be pruned in src/backup.py before the restored checksums are"
        " verified.",
        "Encrypt what src/backup.py uploads with age public keys.",
    ),
)

LOOPS = (
    ("totals.py", "totals.py prints 11, but the rows add up to 12. Find out why and fix it."),
    ("ratio.py", "The share that ratio.py computes is above one for empty baskets. Repair it."),
    ("clock.py", "clock.py shows midnight as 24:00. Make it show 00:00."),
)
FAILURES = (
    ("report.py", "chartmaker", "Make report.py run and draw its chart."),
    ("labels.py", "barcoder", "Get labels.py to produce the barcodes of all parcels."),
    ("voice.py", "speechbox", "Let voice.py read the announcement aloud."),
)
DRIFTS = (
    ("parser.py", "parser.py crashes on empty input with an IndexError. Fix parse()."),
    ("router.py", "router.py matches routes case-sensitively. Compare them in lower case."),
    ("tariff.py", "tariff.py charges the night rate at noon. Correct its hours."),
)
QUESTIONS = (
    ("settings.ini", "Connect the importer to our warehouse database."),
    ("deploy.ini", "Deploy the landing page to the staging machine."),
    ("quota.ini", "Raise the quota of our largest tenant."),
)
DOCUMENTS = (
    "Write the documentation of our command line: README.md and a guide in docs/.",
    "Document the plug-in interface in docs/ with a tutorial for beginners.",
)
POLLS = (
    "Watch the nightly import until it ends, and tell how many records came in.",
    "Follow the migration of the archive until all volumes are copied.",
)
CHORES = (
    *("anchor", "barrel", "candle", "dredge", "ember", "ferry", "gasket", "hinge", "icicle"),
    *("jigsaw", "kettle", "lantern", "magnet", "nozzle", "orchard", "pulley", "quarry", "rivet"),
    *("saddle", "timber", "urn", "valve", "walnut", "xylem", "yarn", "zipper", "acorn", "bobbin"),
    *("cobble", "dowel", "easel", "flint", "gravel", "hammer", "inkwell", "jasper", "kiln"),
    *("loom", "mortar", "needle", "oar", "pebble", "quill", "ribbon", "spindle", "trowel"),
    *("umber", "velvet", "wicker", "yeast", "zinc", "amber", "brass", "copper", "denim", "ebony"),
    *("fleece", "garnet", "hazel", "ivory", "jute", "khaki", "linen", "maple", "nickel"),
)
"""A word for each task: tasks have nothing in common."""
WANTS = (
    ("Compute how heavy one", "is", "from its volume and density"),
    ("Translate the warnings about a broken", "into Finnish", "and mark what is not sure"),
    ("Validate", "serial numbers", "with their check digit"),
    ("Plot yearly", "sales", "per region, as stacked bars"),
    ("Anonymise complaints that mention the", "we sell", "before lawyers read them"),
    ("Convert", "sizes between inches and millimetres", "without losing precision"),
    ("Simulate how a", "wears out", "under frost and rain"),
    ("Estimate freight charges for one", "on a pallet", "by truck, rail and barge"),
    ("Guess next month's demand for the", "in each branch", "out of five years of orders"),
    ("Draw a", "as scalable outline", "for the printed catalogue"),
    ("Group", "suppliers", "by how often they deliver late"),
)
"""What may be wanted of it: beginning, middle and end are drawn apart. A prime number of them."""
