"""The same as test_error_texts for what is not in the command: cards, settings, the home and the database."""

import pytest
from erring import Case, Cause

_NO_FILE = "No such file or directory; check the path"
_CARDS = "hermes-2-pro-mistral-7b, owl, smollm2-135m-instruct. promptmill models add FILE adds one"
_NO_URL = "give sqlite:////path/to/file.db or postgresql://user@host/name"
_NO_TOML = 'Each line is name = value, with text in quotes: model = "NAME"'
_OWN_PLACE = "set PROMPTMILL_HOME or PROMPTMILL_DATABASE_URL to a place that you can write to"
_OTHER_FILE = "name another file in PROMPTMILL_DATABASE_URL, or move this one away"

CARDS: list[Case] = [
    ("models show nobody", 4, f"there is no model card nobody; there are: {_CARDS}"),
    ("submit good.jsonl --model nobody", 4, f"there is no model card nobody; there are: {_CARDS}"),
    ("PROMPTMILL_MODEL=nobody worker", 4, f"there is no model card nobody; there are: {_CARDS}"),
    ("models add none.yaml", 2, f"cannot read the card none.yaml: {_NO_FILE}"),
    ("models add folder", 2, "cannot read the card folder: Is a directory; give a file"),
    ("models add noise", 2, "noise is not UTF-8 text; save it as UTF-8"),
    (
        "models add empty.jsonl",
        2,
        "empty.jsonl: a card is a mapping that has model, model_display_name and json_schema",
    ),
    (
        "models add open.yaml",
        2,
        "open.yaml is not YAML in line 2: expected the node content, but found '<stream end>'",
    ),
    ("models add half.yaml", 2, "half.yaml: model: Field required"),
    ("models add big.yaml", 2, "big.yaml is larger than a card may be (1,048,576 bytes)"),
    (
        "models add name.yaml",
        2,
        "name.yaml: model_display_name may hold a-z, 0-9, '.', '_' and '-' only",
    ),
    ("models add task.yaml", 2, "task.yaml: task_type is text-to-image; only text-generation is run"),
    (
        "models add limit.yaml",
        2,
        "limit.yaml: property max_total_tokens must be a positive whole number of up to nine digits",
    ),
    (
        "models add order.yaml",
        2,
        "order.yaml: max_total_tokens must be greater than max_input_length",
    ),
    (
        "models add json.yaml",
        2,
        "json.yaml: json_schema.input is not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        "models add schema.yaml",
        2,
        'schema.yaml: json_schema.input is not a JSON Schema: "objectx" is not valid under any of the schemas listed in'
        " the 'anyOf' keyword",
    ),
    ("models add own.yaml", 2, "own.yaml: promptmill.weigths: Extra inputs are not permitted"),
    (
        "models add sampling.yaml",
        2,
        "sampling.yaml: promptmill.sampling.temperature: Input should be less than or equal to 2",
    ),
    (
        "models add other.yaml",
        2,
        "there is another card owl at {home}/cards/owl.yaml; --replace puts this one in its place",
    ),
]

SETTINGS: list[Case] = [
    ("PROMPTMILL_LEASES=1 list", 2, "PROMPTMILL_LEASES is not a setting; did you mean PROMPTMILL_LEASE_S?"),
    (
        "PROMPTMILL_LEASE_S=soon list",
        2,
        "setting lease_s (PROMPTMILL_LEASE_S): Input should be a valid number, unable to parse string as a number",
    ),
    (
        "PROMPTMILL_LEASE_S=1 list",
        2,
        "settings: lease_s (1) must be at least three times heartbeat_s (2): else one lost heartbeat loses the lease;"
        " lease_s is from PROMPTMILL_LEASE_S",
    ),
    ("PROMPTMILL_ENGINE=x config", 2, "setting engine (PROMPTMILL_ENGINE): Input should be 'vllm' or 'echo'"),
    (
        "PROMPTMILL_ENGINE_ARGS=hunter2 worker",
        2,
        'setting engine_args (PROMPTMILL_ENGINE_ARGS): give a JSON object, like {{"max_num_seqs": 128}}',
    ),
    (
        "PROMPTMILL_HOME=~no-such-user-here/x list",
        2,
        "setting home (PROMPTMILL_HOME): there is no such user's home folder; give a path",
    ),
    (
        "PROMPTMILL_HOME=broken list",
        2,
        f"{{here}}/broken/promptmill.toml, line 2, column 9: this is not TOML: Invalid value. {_NO_TOML}",
    ),
    (
        "PROMPTMILL_HOME=unknown config",
        2,
        "{here}/unknown/promptmill.toml, line 3: modle is not a setting; did you mean model?",
    ),
    ("PROMPTMILL_DATABASE_URL=x list", 2, f"PROMPTMILL_DATABASE_URL is not a database URL; {_NO_URL}"),
    (
        "PROMPTMILL_DATABASE_URL=postgresql://ada:hunter2@host:port/x list",
        2,
        f"PROMPTMILL_DATABASE_URL is not a database URL; {_NO_URL}",
    ),
    (
        "PROMPTMILL_DATABASE_URL=postgresql://ada:half@hunter2@host/x list",
        2,
        "PROMPTMILL_DATABASE_URL has more than one @; in a password write %40 for it, or use PGPASSWORD",
    ),
    (
        "PROMPTMILL_DATABASE_URL=mysql://ada:hunter2@host/x list",
        2,
        "PROMPTMILL_DATABASE_URL names mysql; jobs are stored in sqlite:///FILE or postgresql://...",
    ),
    (
        "PROMPTMILL_DATABASE_URL=sqlite:// list",
        2,
        "PROMPTMILL_DATABASE_URL names no file, and jobs must outlive the process; give sqlite:////path/to/file.db",
    ),
    (
        "PROMPTMILL_BROKER_URL=amqp://ada:hunter2@host submit good.jsonl",
        2,
        "setting broker_url (PROMPTMILL_BROKER_URL): tickets travel over Redis: give a redis://, rediss:// or"
        " redis+socket:// URL",
    ),
    *(
        (
            f"PROMPTMILL_BROKER_URL={url} {command}",
            2,
            "setting broker_url (PROMPTMILL_BROKER_URL): its port is no number; in a password write %40 for @,"
            " %2F for / and %23 for #",
        )
        for url in ("redis://:hunter2/x@host:1", "redis://:x@hunter2@host", "redis://:hunter2@host:port")
        for command in ("submit good.jsonl", "check", "worker")
    ),
    (
        "PROMPTMILL_BROKER_URL=redis://host/hunter2 submit good.jsonl",
        2,
        "setting broker_url (PROMPTMILL_BROKER_URL): behind the host comes the number of a database:"
        " redis://host:6379/0",
    ),
]

DATABASES: list[Case] = [
    (
        "PROMPTMILL_HOME=good.jsonl list",
        6,
        f"cannot open or make the database {{here}}/good.jsonl/promptmill.db: Not a directory; {_OWN_PLACE}",
    ),
    (
        "PROMPTMILL_HOME=/proc/none run good.jsonl",
        6,
        f"cannot open or make the database /proc/none/promptmill.db: No such file or directory; {_OWN_PLACE}",
    ),
    (
        "PROMPTMILL_HOME=/proc/none models add good.yaml",
        2,
        f"cannot keep the card in /proc/none/cards: {_NO_FILE}",
    ),
    (
        "PROMPTMILL_DATABASE_URL=sqlite:///folder list",
        6,
        f"cannot open or make the database folder: Is a directory; {_OWN_PLACE}",
    ),
    (
        "PROMPTMILL_DATABASE_URL=sqlite:///no.db list",
        6,
        f"the database sqlite:///no.db is not available: file is not a database; {_OTHER_FILE}",
    ),
    (
        "PROMPTMILL_DATABASE_URL=sqlite:///cut.db list",
        6,
        "the database sqlite:///cut.db is not available: database disk image is malformed; put a copy from before in"
        " its place, or move it away to begin anew",
    ),
    *(
        (
            f"PROMPTMILL_DATABASE_URL=sqlite:///newer.db {command}",
            6,
            "the database sqlite:///newer.db was written by a newer promptmill: it is at revision 9999, and this one"
            " knows {head}; run: pip install --upgrade promptmill",
        )
        for command in ("list", "db upgrade", "worker")
    ),
    (
        "PROMPTMILL_DATABASE_URL=sqlite:///other.db list",
        6,
        "the database sqlite:///other.db is not one of promptmill's: Can't locate revision identified by '00aa';"
        " name another file or database",
    ),
    (
        "PROMPTMILL_DATABASE_URL=sqlite:///lost.db submit good.jsonl",
        6,
        "the database sqlite:///lost.db is not at revision {head}; run: promptmill db upgrade",
    ),
    (
        "PROMPTMILL_DATABASE_URL=postgresql://ada:hunter2@127.0.0.1:1/mill list",
        6,
        "the database postgresql+psycopg://ada:***@127.0.0.1:1/mill is not available: connection failed: connection to"
        ' server at "127.0.0.1", port 1 failed: Connection refused; start it, or set PROMPTMILL_DATABASE_URL to one'
        " that runs",
    ),
    (
        "PROMPTMILL_DATABASE_URL=postgresql://ada:hunter2@host.invalid/mill list",
        6,
        "the database postgresql+psycopg://ada:***@host.invalid/mill is not available: failed to resolve host"
        " 'host.invalid': [Errno …] …; check the host's name in PROMPTMILL_DATABASE_URL",
    ),
]


@pytest.mark.parametrize(("command", "code", "text"), [*CARDS, *SETTINGS, *DATABASES])
def test_the_text_says_what_and_where_and_what_to_do(
    cause: Cause, command: str, code: int, text: str
) -> None:
    cause(command, code, text)
