"""HL7 v2 messages, read strictly and validated by the PyPI package `hl7apy`.

    hl7_check.py FILE...

Prints one JSON object for each: type, version, control id, what the validator found, and the OBX with the fields that tests look at.
ORU_R40 is not in hl7apy's tables: HL7 gives it the segments of ORU_R01, under which it is validated.
"""
import json
import pathlib
import sys
import tempfile

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hl7apy.validation import Validator


def faults(message):
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as report:
        try:
            Validator.validate(message, report_file=report.name)
        except Exception as error:
            return report.read().splitlines() or [repr(error)]
        return []


def observation(obx):
    unit, code = obx.OBX_6, obx.OBX_3
    return {
        "type": obx.OBX_2.value, "code": code.CWE_1.value, "name": code.CWE_2.value, "system": code.CWE_3.value,
        "place": obx.OBX_4.value, "value": obx.OBX_5.value, "unit": unit.CWE_1.value if unit.value else "",
        "status": obx.OBX_11.value, "time": obx.OBX_14.value, "device": obx.OBX_18.EI_1.value if obx.OBX_18.value else "",
    }


for name in sys.argv[1:]:
    text = pathlib.Path(name).read_bytes().decode("utf-8")
    structure = text.split("\r")[0].split("|")[8]
    message = parse_message(text.replace("ORU^R40^ORU_R40", "ORU^R01^ORU_R01"), validation_level=VALIDATION_LEVEL.STRICT)
    orders = message.ORU_R01_PATIENT_RESULT.ORU_R01_ORDER_OBSERVATION
    obx = [found.OBX for order in orders for found in order.ORU_R01_OBSERVATION]
    print(json.dumps({
        "structure": structure, "version": message.MSH.MSH_12.value, "control": message.MSH.MSH_10.value,
        "acks": [message.MSH.MSH_15.value, message.MSH.MSH_16.value], "profile": message.MSH.MSH_21.EI_1.value,
        "time": [order.OBR.OBR_7.value for order in orders], "faults": faults(message),
        "observations": [observation(found) for found in obx],
    }))
