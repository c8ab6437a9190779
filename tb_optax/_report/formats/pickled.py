"""Reads a pickle as data: a machine that knows the opcodes, imports nothing and calls nothing.

Python's own `Unpickler` is not safe even if every global is a stub: a memo index of 2^32 in 9 bytes makes it allocate
gigabytes, and a hash of nested tuples takes exponential time. Here a global is a name, a call is a record of that name and
its arguments, and a dict is a list of pairs. The standard library's `pickletools` decodes the arguments of opcodes; `Bytes`
bounds what it may read by what is left.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

_MOST_OPCODES = 5_000_000  # A state dict needs 45 for each array.
_LONGEST_VALUE = 2**28
_LONGEST_LINE = 2**16
_LONGEST_INT = 128  # bits; PyTorch's magic number has 77
_NEWEST_PROTOCOL = 5


class PickleError(Exception):
    """A pickle that is damaged, or made to do harm."""


class Bytes:
    """Part of a file in memory or of a memory map, for `pickletools`: no more is read than there is."""

    def __init__(self, data: Any, start: int, stop: int):
        self._data, self._place, self._stop = data, start, min(stop, len(data))

    def read(self, count: int) -> bytes:
        if not 0 <= count <= min(self._stop - self._place, _LONGEST_VALUE):
            raise PickleError(f"a value of {count:,} bytes, where {self._stop - self._place:,} are left")
        self._place += count
        return bytes(self._data[self._place - count : self._place])

    def readline(self) -> bytes:
        line = bytes(self._data[self._place : min(self._place + _LONGEST_LINE, self._stop)]).partition(b"\n")
        if not line[1]:
            raise PickleError("a line without its end")
        self._place += len(line[0]) + 1
        return line[0] + b"\n"

    def tell(self) -> int:
        return self._place


@dataclasses.dataclass(eq=False, frozen=True, slots=True)
class Global:
    """The name of what a pickle would import."""

    name: str


@dataclasses.dataclass(eq=False, slots=True)
class Mapping:
    """A dict, or an object with items. `pairs` are in the order in which they were set."""

    pairs: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False, slots=True)
class Object(Mapping):
    """What a pickle would call: its name, its arguments, and what was put into it afterwards."""

    name: str = ""
    arguments: Any = None
    elements: list[Any] = dataclasses.field(default_factory=list)
    state: Any = None


_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_MARK = Global("a mark")
_OTHER = Global("another value")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONTAINERS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": Mapping,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    )
)


class Machine:
    """Reads the pickles of one file; all of them together have a limit of opcodes.

    Args:
      call: what a call of a known global gives, or `NotImplemented`; it is given the name and a tuple of arguments.
      persistent: what a persistent id stands for.
    """

    def __init__(self, call: Callable[[str, tuple[Any, ...]], Any], persistent: Callable[[Any], Any]):
        self._call, self._persistent = call, persistent
        self._left = _MOST_OPCODES

    def load(self, source: Bytes) -> Any:
        """The value of the pickle that begins here. `source` is then behind its end.

        Raises:
          PickleError: it is damaged.
        """
        self._source, self._stack, self._marks, self._memo = source, [], 0, {}
        try:
            while self._step() != "STOP":
                pass
            return self._pop()
        except (ValueError, OverflowError, UnicodeError) as error:  # `pickletools` reads arguments.
            raise PickleError(str(error)[:200]) from error

    def _step(self) -> str:
        self._spend(1)
        opcode = _OPCODES.get(self._source.read(1).decode("latin-1"))
        if opcode is None:
            raise PickleError("an unknown opcode")
        name = opcode.name
        if name == "STRING":
            self._stack.append(_unescaped(self._source.readline()))
        elif name in ("GLOBAL", "INST"):
            self._global_or_instance(name)
        else:
            self._run(name, None if opcode.arg is None else opcode.arg.reader(self._source))  # pyright: ignore[reportArgumentType]
        return name

    def _spend(self, opcodes: int) -> None:
        self._left -= opcodes
        if self._left < 0:
            raise PickleError(f"more than {_MOST_OPCODES:,} opcodes")

    def _run(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(_bounded(argument))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name == "MARK":
            self._marks += 1
            stack.append(_MARK)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple([self._pop() for _ in range(int(name[-1]))][::-1]))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise PickleError("a memo entry that was never stored")
            stack.append(self._memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._top()
        elif name in ("EXT1", "EXT2", "EXT4"):
            stack.append(Global("an extension of Python's registry"))
        elif name == "PERSID":
            stack.append(_OTHER)
        elif name == "PROTO":
            if argument > _NEWEST_PROTOCOL:
                raise PickleError(f"protocol {argument}")
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name not in ("FRAME", "STOP"):
            raise PickleError(f"the opcode {name}")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError("a value is missing")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError("a value is missing")
        return self._stack[-1]

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("a mark is missing")
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        self._marks -= 1
        return values[::-1]

    def _discard(self) -> None:
        if self._stack and self._stack[-1] is _MARK:
            self._since_mark()
        else:
            self._pop()

    def _global_or_instance(self, opcode: str) -> None:
        module, name = (self._source.readline()[:-1].decode("utf-8", "replace") for _ in range(2))
        if opcode == "GLOBAL":
            self._stack.append(Global(f"{module}.{name}"))
        else:
            self._stack.append(self._called(Global(f"{module}.{name}"), tuple(self._since_mark())))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a global without a name")
        self._stack.append(Global(f"{module}.{name}"))

    def _persistent_id(self) -> None:
        self._stack.append(self._persistent(self._pop()))

    def _called(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Global) else "a value that is not a function"
        if isinstance(arguments, tuple) and arguments and isinstance(arguments[0], list):
            self._spend(len(arguments[0]))  # A dict copies it, and a pickle may give one list to many.
        known = self._call(name, arguments) if isinstance(arguments, tuple) else NotImplemented
        return Object(name=name, arguments=arguments) if known is NotImplemented else known

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(self._called(function, arguments))

    def _new_object_with_keywords(self) -> None:
        self._pop()
        self._reduce()

    def _object(self) -> None:
        values = self._since_mark()
        if not values:
            raise PickleError("a call of nothing")
        self._stack.append(self._called(values[0], tuple(values[1:])))

    def _build(self) -> None:
        state, built = self._pop(), self._top()
        if isinstance(built, Object):
            built.state = state

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, Mapping) or len(values) % 2:
            raise PickleError("items for a value that is not a dict")
        target.pairs.extend(zip(values[::2], values[1::2], strict=True))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Object):
            target.elements.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise PickleError("elements for a value that is not a list")

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _dict_of_marked(self) -> None:
        values = self._since_mark()
        self._stack.append(Mapping())
        self._set_items(values)


_ACTIONS: dict[str, Callable[[Machine], None]] = {
    "POP": Machine._discard,
    "DUP": lambda machine: machine._stack.append(machine._top()),
    "POP_MARK": lambda machine: machine._since_mark().clear(),
    "LIST": lambda machine: machine._stack.append(machine._since_mark()),
    "TUPLE": lambda machine: machine._stack.append(tuple(machine._since_mark())),
    "FROZENSET": lambda machine: machine._stack.append(machine._since_mark()),
    "DICT": Machine._dict_of_marked,
    "APPEND": lambda machine: machine._append([machine._pop()]),
    "APPENDS": lambda machine: machine._append(machine._since_mark()),
    "ADDITEMS": lambda machine: machine._append(machine._since_mark()),
    "SETITEM": Machine._set_item,
    "SETITEMS": lambda machine: machine._set_items(machine._since_mark()),
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._new_object_with_keywords,
    "OBJ": Machine._object,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}


def _bounded(value: Any) -> Any:
    """A number or text. A huge integer, whose text would take quadratic time, is none that arrays need."""
    return _OTHER if isinstance(value, int) and value.bit_length() > _LONGEST_INT else value


def _unescaped(line: bytes) -> str:
    """A string of Python 2 in its quotes."""
    text = line[:-1]
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1] or b"\\" in text:
        raise PickleError("a string of Python 2 without its quotes, or with escapes")
    return text[1:-1].decode("latin-1")
