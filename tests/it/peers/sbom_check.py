"""Says whether a file is a valid CycloneDX 1.6 document: sbom_check.py FILE (with the schema of cyclonedx-python-lib)."""

import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(pathlib.Path(sys.argv[1]).read_text())
if fault:
    print(fault, file=sys.stderr)
    sys.exit(1)
