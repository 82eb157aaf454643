"""Whether data sets in different encodings say the same: reads lines "ONE<TAB>OTHER" of Part 10 files, prints for each pair "same" or
the first difference. Compared are the bytes of all values, in sequences too; not the value representations, which implicit VR
does not have, nor group lengths.
"""
import sys
import warnings

import pydicom
from pydicom.dataelem import RawDataElement

warnings.simplefilter("ignore")


def elements(dataset):
    return {tag for tag in dataset.keys() if tag.element != 0}


def difference(one, other, at=""):
    if elements(one) != elements(other):
        return f"{at}: elements {sorted(elements(one) ^ elements(other))}"
    for tag in sorted(elements(one)):
        here, raws = f"{at}{tag}", (one.get_item(tag), other.get_item(tag))
        in_bytes = [raw.value or b"" if isinstance(raw, RawDataElement) else None for raw in raws]
        if None not in in_bytes and in_bytes[0] == in_bytes[1]:
            continue
        try:
            first, second = one[tag], other[tag]
        except Exception as error:
            return f"{here}: {error}"
        if "SQ" in (first.VR, second.VR) and first.VR == second.VR:
            if len(first.value) != len(second.value):
                return f"{here}: {len(first.value)} and {len(second.value)} items"
            for number, (item, item_of_other) in enumerate(zip(first.value, second.value)):
                found = difference(item, item_of_other, f"{here}[{number}]")
                if found:
                    return found
        elif first.is_empty and second.is_empty:
            continue
        elif first.value != second.value or None not in in_bytes:
            return f"{here}: {first.VR} {str(first.value)[:40]!r} and {second.VR} {str(second.value)[:40]!r}"
    return None


for line in sys.stdin:
    one, other = line.rstrip("\n").split("\t")
    found = difference(pydicom.dcmread(one, force=True), pydicom.dcmread(other, force=True))
    print(found or "same", flush=True)
