"""SenML JSON packs under RFC 8428, read by a hand that did not write them: its CDDL (section 11) as a JSON Schema, then its resolution
rules (4.6) in plain Python. The packages for SenML on PyPI do not run under Python 3.

    senml_check.py FILE...

Prints one JSON array of the resolved records for each file.
"""
import json
import pathlib
import re
import sys

import jsonschema

number, text = {"type": "number"}, {"type": "string"}
schema = {
    "type": "array", "minItems": 1,
    "items": {
        "type": "object", "additionalProperties": False,
        "properties": {
            "bn": text, "bt": number, "bu": text, "bv": number, "bs": number, "bver": {"type": "integer", "minimum": 1},
            "n": text, "u": {"type": "string", "minLength": 1}, "t": number, "ut": number, "s": number,
            "v": number, "vs": text, "vb": {"type": "boolean"}, "vd": text,
        },
        "oneOf": [{"required": [one]} for one in ("v", "vs", "vb", "vd")],
    },
}
for path in sys.argv[1:]:
    pack = json.loads(pathlib.Path(path).read_text(), parse_constant=lambda name: sys.exit(f"{name} is no JSON"))
    jsonschema.validate(pack, schema)
    base, resolved = {}, []
    for record in pack:
        base.update({key: value for key, value in record.items() if key.startswith("b")})
        name = base.get("bn", "") + record.get("n", "")
        assert re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9:./_]*", name), name
        time = base.get("bt", 0) + record.get("t", 0)
        assert time == 0 or time >= 2**28, "a relative time"
        value = next(record[key] for key in ("v", "vs", "vb", "vd") if key in record)
        resolved.append({"name": name, "time": time, "unit": record.get("u", base.get("bu", "")), "value": value})
    print(json.dumps(resolved))
