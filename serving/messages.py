"""Message classes of tables of fields, where generated ones are missing or would import TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, message_factory

_REPEATED = "repeated "
_MAP = "map<string, "


def message_classes(package: str, messages: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, Any]:
    """Makes the classes of proto3 messages, beside the default pool: other messages may have the same names there.

    Args:
        package: of the messages. What travels does not hold it.
        messages: by name, the number and the type of each field by its name. A type is one of protobuf's scalars
            (`int64`, `bytes`) or another of these messages; `repeated T` and `map<string, T>` of either are types, too.

    Returns:
        The classes by the names of their messages.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in fields.items():
            field = message.field.add(name=name, number=number, label="LABEL_OPTIONAL")
            if kind.startswith((_REPEATED, _MAP)):
                field.label = field.LABEL_REPEATED
            if not kind.startswith(_MAP):
                _set_type(field, kind.removeprefix(_REPEATED), package, messages)
                continue
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label="LABEL_OPTIONAL", type="TYPE_STRING")
            value = entry.field.add(name="value", number=2, label="LABEL_OPTIONAL")
            _set_type(value, kind.removeprefix(_MAP).removesuffix(">"), package, messages)
            field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{message_name}.{entry.name}"
    classes = message_factory.GetMessages([file])
    return {name: classes[f"{package}.{name}"] for name in messages}


def _set_type(field: Any, kind: str, package: str, messages: Mapping[str, Any]) -> None:
    if kind in messages:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
    else:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
