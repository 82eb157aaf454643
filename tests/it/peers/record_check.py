"""Records under the shipped JSON Schema, read by the PyPI package `jsonschema`.

    record_check.py SCHEMA FOLDER

Prints "NAME: valid" or "NAME: why not" for each *.json file of FOLDER, in the order of their names.
"""
import json
import pathlib
import sys

import jsonschema

schema = json.loads(pathlib.Path(sys.argv[1]).read_text())
jsonschema.Draft202012Validator.check_schema(schema)
validator = jsonschema.Draft202012Validator(schema)
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.json")):
    fault = jsonschema.exceptions.best_match(validator.iter_errors(json.loads(path.read_text())))
    print(f"{path.name}: {fault.json_path + ' ' + fault.message if fault else 'valid'}")
