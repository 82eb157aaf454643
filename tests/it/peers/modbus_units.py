"""Units on one Modbus line, made of pymodbus: over TCP or on a serial port, each behaving as the file says at that moment.

UNITS is a JSON file that is read again for every request:
    {"1": {"holding": {"0": 367}, "input": {}, "coils": {}, "discrete": {}, "mute": false, "late": 0.0, "refuse": 0, "garbage": "",
           "lacks": []}}
Addresses count from 0; cells that are not named are 0. A unit that is not in the file never answers. "late" are seconds before the answer is
sent, during which the line is held; "refuse" an exception code; "garbage" bytes in hexadecimal that are sent in place of the answer; "lacks"
addresses of which a request for any is refused with exception 2.
Prints "listening HOST:PORT" (TCP) or "ready" (serial) and "asked UNIT FUNCTION ADDRESS COUNT" for each request.
"""
import argparse
import asyncio
import json
import time

from pymodbus import FramerType
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

CELLS = 64
TABLES = {1: "coils", 2: "discrete", 3: "holding", 4: "input"}

parser = argparse.ArgumentParser()
parser.add_argument("--units", required=True, help="the JSON file")
parser.add_argument("--serial", help="the port; else TCP on a free port")
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--baud", type=int, default=19200)
arguments = parser.parse_args()


def unit(number):
    with open(arguments.units, encoding="utf-8") as file:
        return json.load(file).get(str(number), {"mute": True})


async def answer(number, function, start, address, count, cells, new):
    assert new is None and function in TABLES, "somebody writes"
    asked = unit(number)
    if asked.get("refuse"):
        return ExcCodes(asked["refuse"])
    table = asked.get(TABLES[function], {})
    if function in (1, 2):
        # The simulator keeps bits in words and counts these.
        for word in range(address // 16, address // 16 + count):
            cells[word - start] = sum(table.get(str(word * 16 + bit), 0) << bit for bit in range(16))
        return None
    if any(address <= missing < address + count for missing in asked.get("lacks", [])):
        return ExcCodes.ILLEGAL_ADDRESS
    for cell in range(address, address + count):
        cells[cell - start] = table.get(str(cell), 0)
    return None


def bound(call, *first):
    # The simulator asks for a coroutine function, which functools.partial does not make.
    async def bound_call(*rest):
        return await call(*first, *rest)

    return bound_call


def device(number):
    registers = [SimData(0, count=CELLS, values=0, datatype=DataType.REGISTERS)]
    bits = [SimData(0, count=CELLS, values=False, datatype=DataType.BITS)]
    return SimDevice(number, simdata=(bits, bits, registers, registers), action=bound(answer, number))


def packet(sending, data):
    if not sending or not data:
        return data
    asked = unit(data[0] if arguments.serial else data[6])
    if asked.get("late"):
        time.sleep(asked["late"])
    if asked.get("mute"):
        return b""
    return bytes.fromhex(asked["garbage"]) if asked.get("garbage") else data


def pdu(sending, message):
    if not sending:
        print("asked", message.dev_id, message.function_code, message.address, message.count, flush=True)
    return message


async def main():
    devices = [device(number) for number in range(1, 5)]
    common = {"ignore_missing_devices": True, "trace_packet": packet, "trace_pdu": pdu}
    if arguments.serial:
        server = ModbusSerialServer(devices, framer=FramerType.RTU, port=arguments.serial, baudrate=arguments.baud, **common)
        await server.serve_forever(background=True)
        print("ready", flush=True)
    else:
        server = ModbusTcpServer(devices, address=("127.0.0.1", arguments.port), **common)
        await server.serve_forever(background=True)
        host, port = server.transport.sockets[0].getsockname()
        print(f"listening {host}:{port}", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
