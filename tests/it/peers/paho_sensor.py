"""A sensor made of paho-mqtt: publishes COUNT texts with many in flight, and asks for a subscription that it is not given.

    paho_sensor.py PORT VERSION QOS COUNT        VERSION is 4 (3.1.1) or 5
"""

import sys
import threading

import paho.mqtt.client as mqtt

port, version, qos, count = (int(argument) for argument in sys.argv[1:5])
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="sensor", protocol=version)
client.max_inflight_messages_set(20)
connected, refused, done = threading.Event(), threading.Event(), threading.Event()
acknowledged = 0


def on_connect(_client, _data, _flags, reason, _properties):
    assert not reason.is_failure, reason
    connected.set()


def on_subscribe(_client, _data, _id, reasons, _properties):
    assert all(reason.is_failure for reason in reasons), reasons
    print("subscription refused")
    refused.set()


def on_publish(_client, _data, _id, reason, _properties):
    global acknowledged
    assert not reason.is_failure, reason
    acknowledged += 1
    if acknowledged == count:
        done.set()


client.on_connect, client.on_subscribe, client.on_publish = on_connect, on_subscribe, on_publish
client.connect("127.0.0.1", port, keepalive=10)
client.loop_start()
assert connected.wait(20), "not connected"
client.subscribe("ward3/#", 1)
assert refused.wait(20), "no answer to SUBSCRIBE"
for number in range(count):
    client.publish("ward3/paho", f"{version} {qos} {number} \u00b0C", qos=qos)
assert done.wait(20), f"only {acknowledged} acknowledged"
client.disconnect()
client.loop_stop()
print("acknowledged", acknowledged)
