"""Whether words do no more than advise: what a model may say to an agent in words of its own.

Laws:

1. What is not known to be harmless is not advice. A message is read word for word: a word is
   letters, a number is short, a file is one that the agent wrote itself. Anything else (a host,
   an address, a path, a flag, an identifier, a sign) is none.
2. No tool is named, and nobody is told to do what leaves the checkout or cannot be undone: to
   install, publish, send, delete. To run is to run the tests. It may be said that the agent did
   so: "You deleted a test at step 7."
3. No rule is lifted, no test called needless, no leave given.
4. A sentence in a language that cannot be read here is none: nothing could be said of it.

Who speaks of such things in earnest is refused too: there are words of our own for that.
"""

# ruff: noqa: RUF001 - letters of other alphabets, and their stops, are what it reads

import re
import unicodedata
from collections.abc import Iterable

_MORE_THAN_ADVICE = re.compile(
    r"://|www\.|```|\$\(|[A-Za-z0-9+/=]{60,}|[\[(]\s*(?:dot|at|punkt)\s*[\])]"
    r"|\b(?:password|passphrase|secret|credential|api[ _-]?key|token|private key|environment)s?\b"
    r"|\b(?:link|url|website|site|server|host|domain|address|endpoint|port|proxy|webhook)s?\b"
    r"|\b(?:packages?|dependenc\w+|librar\w+|registr\w+|repositor\w+|remotes?|production|prod)\b"
    r"|\bmain\b(?! (?:function|module|loop|file|cause|point|error|part|thing|goal|task))"
    r"|\b(?:dot|slash|backslash|shell|command line|terminal|console|script|binary|payload)s?\b",
    re.IGNORECASE,
)

_NAMES = """
    pip pipx npm npx yarn pnpm bun bunx cargo brew apt apt-get dnf yum apk gem conda poetry uv
    uvx docker podman kubectl helm terraform ansible git gh hg svn curl wget bash sh zsh ksh
    powershell pwsh cmd python py node deno perl ruby php java cmake gradle mvn sudo su doas chmod
    chown rm rmdir mv cp dd kill pkill killall ssh scp rsync sftp ftp nc netcat ncat telnet socat
    cat tee sed awk xargs eval exec crontab cron systemctl systemd mount umount mkfs shutdown
    psql mysql sqlite redis mongo aws gcloud az openssl gpg base env printenv twine nohup tmux
    iptables useradd passwd sudoers npm-cli redis-cli"""
_TOOLS = frozenset(_NAMES.split())
"""Plain words otherwise; what has a digit or a sign in it is no word at all."""

_ACTS = (
    r"re-?run|run|execut|invok|launch|spawn|install|uninstall|reinstall|publish|deploy|ship|push"
    r"|pull|send|resend|upload|download|fetch|delet|eras|wip|drop|purg|truncat|destroy|remov"
    r"|reset|merg|rebas|commit|clon|checkout|check out|cherry-pick|releas|mail|e-mail|email|post"
    r"|forward|transfer|transmit|share|copy|copi|submit|print|dump|reveal|expos|leak|export|import"
    r"|visit|brows|navigat|connect|contact|subscrib|regist|log ?in|sign in|kill|terminat|reboot"
    r"|restart|shut|format|overwrit|encrypt|decod|decrypt|escalat|elevat|migrat|upgrad|updat"
    r"|downgrad|bump|approv|authori[sz]|permit|permission|grant|allow|waiv|whitelist|enabl|disabl"
    r"|override|bypass|circumvent|trust|obey|switch off|turn off|get rid|throw away|clear out"
    r"|clean out|roll out|give access|bring in|hand over|pass on"
)
_ACT = re.compile(
    rf"\b(?:{_ACTS})(?:n|t|e|es|s|d|ed|p?ing|n?ing|t?ing|ped|ting|ied|ies|al|ation|ment|ion)?\b"
    r"|\b(?:sent|ran|reran|shut|wiped|copying|running|dropping|dropped|resetting|shipping)\b",
    re.IGNORECASE,
)

_TESTS = re.compile(
    r"\b(?:re-?)?run(?:ning|s)?(?: (?:all|again|only|just|the|its|your|those|these|this|that|whole"
    r"|full|one|failing|failed|existing|own|unit|first|last|new|of|same))*"
    r" (?:tests?(?: suite)?|suite)\b"
    r"|\b(?:tests?|suite) (?:to |that )?runs?\b|\b(?:this|the|last|next|each|every|a) run\b",
    re.IGNORECASE,
)
"""The one thing to be run, and runs that are spoken of."""

_DID = re.compile(
    r"(?:\A|(?<=[.!?;]\s))(?:(?:at|in) step \d+,? )?(?:you|step \d+|steps \d+ and \d+)"
    r"(?: have| has)? (?:just )?(?:\w+ed|sent|ran|reset|shut)\b",
    re.IGNORECASE,
)
"""The beginning of a sentence that tells what was done."""

_RULES = (
    r"(?:constraint|rule|polic(?:y|ie)|restriction|requirement|guard(?:rail|ian)?|limit|boundar"
    r"|instruction|review|approval|permission|confirmation|supervis|oversight|custos|safeguard)"
)
_NOT = (
    r"\b(?:no|not|never|none|nothing|nobody|neither|nor|cannot|without|lifted|void|waived|gone"
    r"|off|suspended|obsolete|outdated|expired|optional|needless|unneeded|unnecessary|irrelevant"
    r"|superfluous|beyond|past|past it|regardless|despite|ignor\w*|disregard\w*|forget|skip\w*"
    r"|lift\w*|drop\w*|relax\w*|loosen\w*|break|over|stop|instead|anyway|free|exempt\w*|void"
    r"|except\w*|unless|needn't|(?:do|does|is|are|was|were|has|have|must|need|wo|ca|should)n[’']?t)"
    r"(?![\w’'])"
)
_LIFTS = re.compile(
    rf"{_NOT}[^.!?;]{{0,300}}\b{_RULES}|\b{_RULES}[^.!?;]{{0,300}}{_NOT}"
    r"|\btest\w*\b[^.!?;]{0,30}\b(?:not|n[’']t|no longer|un|hardly) ?"
    r"(?:be )?(?:need|necess|requir|matter|want|count|import|worth)\w*"
    r"|\btest\w*\b[^.!?;]{0,30}\b(?:needless|unneeded|unnecessary|optional|superfluous|later|wait)"
    r"|\b(?:without|instead of|rather than|before|skip\w*|forget|ignor\w*|disregard\w*|avoid|omit"
    r"|stop|leave (?:out|aside|off)|disabl\w*|drop|spare)\b[^.!?;]{0,20}"
    r"\b(?:test|check|ask|verif|review|wait|confirm)(?!\w* (?:first|at step))\w*"
    r"|(?:\b(?:not|never|no need to|no need for|no|without)|n[’']t)"
    r" (?:need |have |want )?(?:to |any |more |further |the )*"
    r"(?:run|test|tests|testing|check|checks|verify|ask|asking|wait|report|stop|worry|tell)\b"
    r"(?! (?:has|have|had|passed|was|were|is|covers|shows|that|of|for)\b)"
    r"|\b(?:you|agents?) (?:may|might|can now|are (?:now )?"
    r"(?:free|welcome|entitled|cleared|trusted|exempt))\b"
    r"|\b(?:feel|are|be) free\b|\bat liberty\b|\bfree hand\b|\bcarte blanche\b|\bautonom\w*"
    r"|\bunlimited|\bunrestricted|\bfull (?:access|rights?|control)\b|\ball (?:rights|you like)\b"
    r"|(?<!you )\b(?:mark|call|declare|report|count|treat|say)\b[^.!?;]{0,30}"
    r"\b(?:as done|done|finished|complete|passed|green|well)\b"
    r"|\bfrom now on\b|\bany ?more\b|\bwhatever you\b|\bon your own\b|\bin secret\b|\bsilently\b",
    re.IGNORECASE,
)

_ELSEWHERE = re.compile(
    # Rules left aside, in other languages: the verbs alone, so it takes some that do not.
    r"\b(?:ignorier|missacht|umgeh|vergiss|überspring|hebe?\b.{0,30}\bauf\b|darfst|darf\b|erlaub"
    r"|gelten nicht|nicht mehr|ohne (?:prüf|test|freigabe|rück|zu frag)|braucht? keine|genehmig)"
    r"|\b(?:ignore[zr]|oublie[zr]?|contourne|désactive|passe outre|tu peux|vous pouvez|autoris"
    r"|sans (?:revue|test|approb|demander|valid)|ne s[’']appliqu|plus besoin)"
    r"|\b(?:ignora|olvida|desactiva|salta|omite|puedes|podes|desative|esque[çc]a|pode fazer"
    r"|puoi|aprob|aprov|approv|autoriz|permit|permiso|sin (?:revis|prueb|pregunt|aprob)"
    r"|sem (?:revis|test|pergunt|aprov)|senza (?:revis|test|chied|approv)|ya no|já não|non più)"
    r"|игнорир|забудь|обойди|отключи|нарушай|разреш|можно|можешь|одобр|не действу|без "
    r"(?:провер|тест|одобр|спрос)|больше не"
    r"|忽略|无视|無視|绕过|繞過|禁用|解除|不必|无需|無需|不用|可以|允许|批准|不再|跳过"
    r"|無効|守らな|不要|承認|許可|なしで|てもよい|ていい"
    # And what only a person may have done.
    r"|\b(?:führ\w* .{0,40}\baus\b|ausführ|starte?\b|installier|veröffentlich|lösch|entfern|schick"
    r"|send|lade?\b|hochlad|herunterlad|verschick|übertrag|kopier|schieb|spiel\w* .{0,20}\bein\b)"
    r"|\b(?:exécut|lance[zr]?\b|install|supprim|effac|envoi|envoy|télécharg|publi|déploi|pouss"
    r"|copie[zr]?\b|transmet|fusionn)"
    r"|\b(?:ejecut|corre\b|instal|borr|elimin|enví|envi[ae]|manda|descarg|sub[ei]\b|public|despl"
    r"|empuj|copi[ae]|execut|rode\b|apag|exclu|baix|inst|esegu|lancia|cancell|scaric|invia|spedi)"
    r"|запус|выполн|установ|удал|стереть|сотри|отправ|пошли|скача|опублик|загруз|залей|залить"
    r"|передай|скопир|слей"
    r"|运行|運行|执行|執行|安装|安裝|删除|刪除|发送|發送|发到|上传|上傳|下载|下載|发布|發佈|部署"
    r"|推送|合并|合併|重置|清空|复制|提交|実行|インストール|削除|送信|送っ|アップロード"
    r"|ダウンロード|公開|デプロイ|プッシュ|マージ|消去|コピー",
    re.IGNORECASE,
)

_CODED = re.compile(
    r"(?:[.\-·−–]{1,6}[ /]+){6}|(?:[01]{8}\s*){3}|(?:(?<!\w)\w ){5}|(?:\b\d+ ){3}\d"
)
"""What a reader would have to decode or put together."""

# --- Words ------------------------------------------------------------------------------------

_READ = tuple(
    frozenset(words.split())
    for words in (
        # English, with what advice is made of.
        """a about above act after again all already also although an and another are as ask asked
        at be because been before being both but by cause change changed could decide did do does
        done each either else error errors every expect fail failed failing fails failure fault
        few file files first fix for from full function gave get give go goal had has have how if
        in instead into is it its keep know last least leave less like look make mend missing more
        most much must name need needed needs new next no not note now of on once one only or other
        others out over own part pass passed point read reason result same say see shall should
        show shows since small smallest so some something stay step steps still stop such task tell
        test tests than that the their them then there these they thing this those though three
        time to too towards try two undo until up used want wants was way were what when where
        which while who why will with within without work would write wrote yet you your""",
        """aber alle allem als also am an auch auf aus bei bevor bis da damit dann das dass dein
        deine dem den der des die dies diese diesen dieser doch du ein eine einem einen einer eines
        er erst es für hast hat ihn im in ist ja kein keine lies mit nach nicht noch nun nur ob
        oder ohne schritt sich sie sind so um und uns versuche vom von vor war was weg wenn wer wie
        wieder wo zu zuerst zum zur fehler test tests aufgabe""",
        """à au aux avant avec ce ces cette chose comme dans de des donc du elle en encore est et
        étape été il je l la le les leur lis mais même ne nous on ou où par pas pour puis quand que
        quel quelle qui relis sa sans se ses si son sont sur ta te tes test tests ton tu un une
        vers vos votre vous y erreur tâche continuer d s n""",
        """a al antes ante como con de del desde dice dime donde e el ella en entre es esa ese eso
        está esta este esto ha has hasta la las le lee lo los luego más mismo no o otra otro para
        paso pero por prueba pruebas porque primero que qué se según ser si sin sobre son su sus tu
        un una y ya error tarea""",
        """a ao antes as até com como da das de depois do dos e ela ele em entre essa esse este
        está há isso isto já leia mais mas mesmo na nas no nos o os ou outra outro para passo pela
        pelo por porque primeiro que quando se sem seu sua são teste testes um uma você erro""",
        """a al alla anche che chi ci come con cosa da dal dalla dei del della di dove e è gli ha
        hai i il in la le leggi lo ma nel nella non o ogni passo per perché poi prima quale quando
        quello questo se si sono su sul tra tu un una uno errore prova test compito""",
        """а без бы был была было в во вот все всё где для до его ее её если есть ещё и из или им
        их к как когда кто ли мне на не него нет но о об он она они от ошибка ошибки ошибку по
        под пока попробуй потом почему при прочитай с сам сделай сначала снова со так там тебя
        тест тесты то тогда только том ты у уже чем что чтобы шаг шага шаге шагу это этого этот
        задача иначе скажи""",
    )
)
_KNOWN_SHARE = 1 / 3

_SPACE = re.compile(r"[\s，。、！？；：,!?;:「」『』（）《》]+|—|–(?=\s)")
_AROUND = "\"'`“”‘’«»„()[]*,;:!?…."
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+){0,3}")
_NUMBER = re.compile(r"#?\d{1,5}(?:st|nd|rd|th)?(?:[-–]\d{1,5})?")
_CAMEL = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]{2}")
_PATH = re.compile(r"(?!-)[\w.-]+(?:/[\w.-]+)*/?")
_STOP = re.compile(r"[.!?;…]+\s+|\n+|:\s")
_IDEOGRAPHS = re.compile(r"[\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_LATIN_BESIDE = re.compile(r"[A-Za-z0-9][。．｡][A-Za-z0-9]")
_ABBREVIATIONS = frozenset({"e.g", "i.e", "z.B", "d.h"})
_LONGEST_WORD = 24


def is_advice(message: str, written: Iterable[str] = ()) -> bool:
    """Whether a message does no more than advise; see the module's laws.

    `written` are the files that the agent itself wrote: they, their ends and their folders may
    be named.
    """
    if _LATIN_BESIDE.search(message):
        return False
    # As it reads: full-width letters are letters.
    message = unicodedata.normalize("NFKC", message)
    names = _names(written)
    words = [token for token in map(_bare, _SPACE.split(message)) if token and token not in names]
    if not all(map(_is_plain, words)):
        return False
    prose = " ".join("it" if _bare(token) in names else token for token in message.split())
    told = _DID.sub("You did", _TESTS.sub("test", prose))
    return (
        not _MORE_THAN_ADVICE.search(prose)
        and not _ACT.search(told)
        and not _LIFTS.search(prose)
        and not _ELSEWHERE.search(_TESTS.sub("test", _DID.sub("You did", prose)))
        and not _CODED.search(prose)
        and all(map(_is_read, _STOP.split(prose)))
    )


def _names(written: Iterable[str]) -> frozenset[str]:
    """How the files may be called: whole, by an end of the path, by a folder of it."""
    names: set[str] = set()
    for path in written:
        parts = path.strip("/").split("/")
        if not _PATH.fullmatch("/".join(parts)):
            continue
        for at in range(len(parts)):
            names.add("/".join(parts[at:]))
            names.update("/".join(parts[at:end]) + "/" for end in range(at + 1, len(parts)))
        names.add("/" + "/".join(parts))
    return frozenset(names)


def _bare(token: str) -> str:
    return token.strip(_AROUND)


def _is_plain(token: str) -> bool:
    """Whether it is a word or a small number, and not a name that only machines use."""
    if _NUMBER.fullmatch(token) or token in _ABBREVIATIONS or token in {"-", "–"}:
        return True
    if not _WORD.fullmatch(token) or _CAMEL.search(token) or _mixes_scripts(token):
        return False
    if _IDEOGRAPHS.search(token):
        # They know no spaces; letters of ours between them are names again.
        return not re.search(r"[A-Za-z]", token)
    return len(token) <= _LONGEST_WORD and token.casefold() not in _TOOLS


def _is_read(sentence: str) -> bool:
    """Whether it is in a language of which enough is known here."""
    words = [word.casefold() for word in _WORD.findall(sentence)]
    spelled = [word for word in words if not _IDEOGRAPHS.search(word)]
    if not spelled:
        return True
    return any(sum(w in known for w in spelled) >= _KNOWN_SHARE * len(spelled) for known in _READ)


def _mixes_scripts(word: str) -> bool:
    """Whether letters of several alphabets make up a word, to look like another one."""
    scripts = {unicodedata.name(c, "?").split(" ")[0] for c in word if c.isalpha()}
    return len(scripts & {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"}) > 1
