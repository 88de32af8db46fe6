"""Stand-ins for TensorRT's objects that accept what the real bindings accept, and nothing else.

They are made from the real classes of one release: an attribute exists where the real class has it, a call is checked
against the signatures in the real docstring (every overload: number, names and types of the arguments), a property can be
set where the real one can, and enumerations and value types (`Dims`, `Weights`, loggers, calibrators) are the real ones.
What a call answers is scripted, and checked against the real return type as well. Every call is recorded.

A mock accepts any number of arguments, and one made with `create_autospec` still does for a class written in C++.
"""

from __future__ import annotations

import collections.abc
import ctypes
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

REAL = frozenset({"Weights", "Permutation", "ILogger", "Logger", "PluginField", "PluginFieldCollection", "APILanguage"})
"""Classes that are used as they are, besides enumerations and the families below: Python can make them."""
REAL_FAMILIES = (
    "Dims",
    "IInt8",
    "IProgressMonitor",
    "IErrorRecorder",
    "IGpuAllocator",
    "IGpuAsyncAllocator",
    "IOutputAllocator",
    "IProfiler",
    "Profiler",
    "IStream",
    "IDebugListener",
    "IAlgorithmSelector",
    "IPlugin",
    "IVersionedInterface",
)
"""Beginnings of the names of further such classes: values, and what users derive from."""
SPECIAL = ("__len__", "__getitem__", "__bool__", "__call__", "__iter__")
"""Special methods that a real class may have."""


class MisuseError(TypeError):
    """A call that the real bindings refuse, or accept and mean otherwise. They raise TypeError; this says why."""


class UnscriptedError(AssertionError):
    """Something was asked of a stand-in that nobody has said the answer to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One parameter, as a docstring of pybind11 has it."""

    name: str
    annotation: str
    has_default: bool
    by_name: bool
    """Whether a caller can name it: parameters called `arg0` have no name in C++."""
    by_position: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """One overload."""

    text: str
    parameters: tuple[Parameter, ...]
    """Without `self`."""
    returns: str


def signatures(doc: str | None) -> tuple[Signature, ...]:
    """The overloads that a docstring lists; none where it has no signature."""
    found = []
    for line in (doc or "").splitlines():
        match = re.match(r"(?:\d+\. )?\w*(\(.*\)) -> (.+)$", line)
        if match and match.group(1) != "(*args, **kwargs)":
            parameters = tuple(_parameters(match.group(1)[1:-1]))
            found.append(Signature(text=line.strip(), parameters=parameters, returns=match.group(2).strip()))
    return tuple(found)


def _parameters(text: str) -> Iterator[Parameter]:
    by_position = True
    for index, part in enumerate(_split(text, ",")):
        if part in ("*", "/"):
            by_position = part == "/"
            continue
        head, *default = _split(part, "=")
        name, _, annotation = head.partition(":")
        if index == 0 and name.strip() in ("self", "arg0"):
            continue
        yield Parameter(
            name=name.strip(),
            annotation=annotation.strip() or "object",
            has_default=bool(default),
            by_name=re.fullmatch(r"arg\d+", name.strip()) is None,
            by_position=by_position,
        )


def _split(text: str, separator: str) -> list[str]:
    """Split where no bracket and no quotation is open; pybind11 writes defaults as `<Strategy.STATIC: 0>`."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


@dataclass(kw_only=True, slots=True)
class Event:
    """One call, or one property set."""

    kind: str
    """`call` or `set`."""
    owner: str
    """Class of the stand-in."""
    name: str
    arguments: dict[str, Any]
    """By name; of a property `{"value": ...}`."""
    target: Any = None
    """The stand-in itself."""


@dataclass(slots=True)
class Record:
    """Everything that was done with the stand-ins of one release."""

    events: list[Event] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What the real bindings would have refused, also where the caller caught the error."""

    def calls(self, owner: str, name: str) -> list[dict[str, Any]]:
        """The arguments of every call of a method."""
        return [e.arguments for e in self.events if (e.kind, e.owner, e.name) == ("call", owner, name)]

    def values(self, owner: str, name: str) -> list[Any]:
        """Every value a property was set to."""
        return [e.arguments["value"] for e in self.events if (e.kind, e.owner, e.name) == ("set", owner, name)]

    def fault(self, text: str) -> str:
        self.faults.append(text)
        return text

    def clear(self) -> None:
        self.events.clear()
        self.faults.clear()


Script = Callable[..., Any]
"""Answers a call: `script(stand_in, **arguments)`; a property: `script(stand_in)`."""


class Strict:
    """Base of every stand-in. `_fakes`, `_state` and `_buffer` are its own; everything else is the real class's."""

    _fakes: Fakes
    _real: type
    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        own = type(self)
        if name == "__class__":  # how Python users turn an `ILayer` into an `IConvolutionLayer`
            if not (isinstance(value, type) and issubclass(value, Strict)):
                raise MisuseError(own._fakes.record.fault(f"{own.__name__}.__class__ set to {value!r}"))
            object.__setattr__(self, name, value)
            return
        if name not in own._fakes.names(own._real):
            text = f"{own.__name__} of TensorRT {own._fakes.version} has no attribute {name!r} to set"
            raise AttributeError(own._fakes.record.fault(text))
        object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        return sorted(type(self)._fakes.names(type(self)._real))

    def __repr__(self) -> str:
        return f"<strict {type(self).__name__}>"


@dataclass(slots=True)
class _State:
    """What one stand-in knows."""

    values: dict[str, Any] = field(default_factory=dict)
    """What properties were set to, and what the script put here."""


class Fakes:
    """The stand-ins of one release, and a module `tensorrt` that has them in the place of the real classes."""

    def __init__(self, real: ModuleType) -> None:
        """
        Args:
            real: the imported `tensorrt_bindings`.
        """
        self.real = real
        self.version = str(real.__version__)
        self.record = Record()
        self.scripts: dict[tuple[str, str], Any] = {}
        """What a method or property answers, by class and name: a value, or a function (see `Script`)."""
        self.unknown: set[str] = set()
        """Annotations met that are not understood, and so not checked."""
        self._states: dict[int, tuple[Any, _State]] = {}
        self._classes: dict[str, type] = {}
        self._names: dict[type, frozenset[str]] = {}
        self.module = self._module()

    def new(self, class_name: str, /, **values: Any) -> Any:
        """A stand-in of the class, as a call of the bindings would return it; `values` are its properties."""
        cls = self._classes[class_name]
        stand_in = object.__new__(cls)
        return self._born(stand_in, values)

    def memory(self, content: bytes) -> Any:
        """An `IHostMemory` with this content: it offers Python's buffer protocol, and no `len()`."""
        cls = self._classes["IHostMemory"]
        array = ctypes.c_ubyte * len(content)  # offers a buffer, and nothing that `bytes` has
        special = {name: getattr(cls, name) for name in SPECIAL} | {"__slots__": (), "__module__": cls.__module__}
        stand_in = type("IHostMemory", (cls, array), special).from_buffer_copy(content)
        return self._born(stand_in, {"nbytes": len(content)})

    def values(self, stand_in: Any) -> dict[str, Any]:
        """What properties of `stand_in` were set to, or were scripted; a script may keep things of its own here."""
        return self._states[id(stand_in)][1].values

    def _born(self, stand_in: Any, values: Mapping[str, Any]) -> Any:
        self._states[id(stand_in)] = (stand_in, _State(values=dict(values)))  # kept alive, so that the id stays its own
        return stand_in

    def names(self, real: type) -> frozenset[str]:
        """What the real class has, without Python's own."""
        if real not in self._names:
            own = {name for name in dir(real) if not name.startswith("_")}
            self._names[real] = frozenset(own)
        return self._names[real]

    def install(self) -> ModuleType:
        """Make `import tensorrt` find the stand-ins, and everything that looks for the real classes' module as well."""
        for name in ("tensorrt", "tensorrt_bindings", "tensorrt_bindings.tensorrt"):
            sys.modules[name] = self.module
        return self.module

    def _module(self) -> ModuleType:
        module = ModuleType("tensorrt", self.real.__doc__)
        module.__dict__.update({name: value for name, value in vars(self.real).items() if not name.startswith("__")})
        module.__dict__["__version__"] = self.version
        for name, value in vars(self.real).items():
            if isinstance(value, type) and self._is_faked(value):
                module.__dict__[name] = self._class(value)
        return module

    def _is_faked(self, cls: type) -> bool:
        name = cls.__name__
        if hasattr(cls, "__members__") or not cls.__module__.startswith("tensorrt_bindings"):
            return False
        return name not in REAL and not name.startswith(REAL_FAMILIES)

    def _class(self, real: type) -> type:
        if real.__name__ in self._classes:
            return self._classes[real.__name__]
        bases = tuple(self._class(base) for base in real.__bases__ if self._is_faked(base)) or (Strict,)
        body: dict[str, Any] = {"__slots__": (), "__module__": real.__module__, "__doc__": real.__doc__}
        body |= {"_fakes": self, "_real": real, "__init__": self._constructor(real), "__new__": _plain_new}
        for name in self.names(real):
            body[name] = self._attribute(real, name, inspect.getattr_static(real, name))
        for name in SPECIAL:
            body[name] = self._special(real, name)
        for name in ("__enter__", "__exit__"):
            if isinstance(getattr(real, name, None), FunctionType):  # Python's, with NVIDIA's deprecation warning
                body[name] = getattr(real, name)
        made = type(real.__name__, bases, body)
        self._classes[real.__name__] = made
        return made

    def _constructor(self, real: type) -> Script:
        overloads = signatures(getattr(real.__init__, "__doc__", None))

        def construct(stand_in: Any, *args: Any, **kwargs: Any) -> None:
            if not overloads:
                raise MisuseError(self.record.fault(f"{real.__name__}: No constructor defined!"))
            arguments, _ = self._bind(real.__name__, "__init__", overloads, args, kwargs)
            self._born(stand_in, {})
            self._note("call", stand_in, "__init__", arguments)
            script = self.scripts.get((real.__name__, "__init__"))
            if script is not None:
                script(stand_in, **arguments)

        return construct

    def _attribute(self, real: type, name: str, static: Any) -> Any:
        if isinstance(static, property):
            return self._property(real, name, static)
        if callable(getattr(real, name)) and not isinstance(static, type):
            return self._method(real, name, getattr(static, "__doc__", None))
        return getattr(real, name)  # an enumeration's member, a nested enumeration, a constant

    def _special(self, real: type, name: str) -> Script:
        static = inspect.getattr_static(real, name, None)
        if static is not None and "instancemethod" in type(static).__name__:
            return self._method(real, name, static.__doc__)
        if name == "__bool__":
            return lambda stand_in: True

        def missing(stand_in: Any, *args: Any) -> Any:
            raise MisuseError(self.record.fault(f"{real.__name__} has no {name}"))

        return missing

    def _method(self, real: type, name: str, doc: str | None) -> Script:
        overloads = signatures(doc)

        def method(stand_in: Any, *args: Any, **kwargs: Any) -> Any:
            arguments, used = self._bind(real.__name__, name, overloads, args, kwargs)
            self._note("call", stand_in, name, arguments)
            script = self._script(type(stand_in), name)
            if script is not None:
                answer = script(stand_in, **arguments) if callable(script) else script
            elif name in self.values(stand_in):
                answer = self.values(stand_in)[name]
            else:
                answer = self._default(real.__name__, name, used.returns if used else "object")
            return self._answer(f"{real.__name__}.{name}", answer, used.returns if used else "object")

        method.__name__, method.__doc__ = name, doc
        return method

    def _property(self, real: type, name: str, static: property) -> property:
        where = f"{real.__name__}.{name}"
        got = signatures(getattr(static.fget, "__doc__", None))
        set_ = signatures(getattr(static.fset, "__doc__", None))
        returns = got[0].returns if got else "object"

        def get(stand_in: Any) -> Any:
            if static.fget is None:
                raise AttributeError(f"{where} cannot be read")
            state = self.values(stand_in)
            if name in state:
                return self._answer(where, state[name], returns)
            script = self._script(type(stand_in), name)
            answer = script(stand_in) if callable(script) else script
            if script is None:
                answer = state[name] = self._default(real.__name__, name, returns)
            return self._answer(where, answer, returns)

        def put(stand_in: Any, value: Any) -> None:
            if static.fset is None:
                raise AttributeError(self.record.fault(f"{where} is read-only"))
            annotation = set_[0].parameters[0].annotation if set_ else "object"
            if value is not None and not self._fits(value, annotation):
                raise MisuseError(self.record.fault(f"{where} = {value!r}: the real property takes {annotation}"))
            if value is None and not self._is_pointer(annotation):
                raise MisuseError(self.record.fault(f"{where} = None: the real property takes {annotation}"))
            self._note("set", stand_in, name, {"value": value})
            self.values(stand_in)[name] = value

        return property(get, put, doc=static.__doc__)

    def _note(self, kind: str, stand_in: Any, name: str, arguments: dict[str, Any]) -> None:
        owner = type(stand_in).__name__
        self.record.events.append(Event(kind=kind, owner=owner, name=name, arguments=arguments, target=stand_in))

    def _script(self, cls: type, name: str) -> Any:
        for base in cls.__mro__:
            if (base.__name__, name) in self.scripts:
                return self.scripts[base.__name__, name]
        return None

    def _default(self, owner: str, name: str, annotation: str) -> Any:
        """Without a script a call returns nothing where the real one does, or a new stand-in of the annotated class."""
        if annotation == "None":
            return None
        resolved = self._resolve(annotation)
        if isinstance(resolved, type) and issubclass(resolved, Strict):
            return self.new(resolved.__name__)
        raise UnscriptedError(self.record.fault(f"{owner}.{name} was asked, and no answer is scripted ({annotation})"))

    def _answer(self, where: str, answer: Any, annotation: str) -> Any:
        if annotation == "None" or answer is None:
            return None
        resolved = self._resolve(annotation)
        if resolved is getattr(self.real, "Dims", None) and not isinstance(answer, resolved):
            return resolved(tuple(answer))
        if not self._fits(answer, annotation):
            raise UnscriptedError(
                self.record.fault(f"{where}: the script answers {answer!r}, the real one {annotation}")
            )
        return answer

    def _bind(
        self, owner: str, name: str, overloads: tuple[Signature, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Signature | None]:
        if not overloads:  # Python's own methods, which say nothing
            return {f"arg{index}": value for index, value in enumerate(args)} | dict(kwargs), None
        for overload in overloads:
            arguments = self._fit(overload, args, kwargs)
            if arguments is not None:
                return arguments, overload
        given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        accepted = " | ".join(overload.text for overload in overloads)
        raise MisuseError(self.record.fault(f"{owner}.{name}({given}): the real one is {accepted}"))

    def _fit(self, overload: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        positional = [parameter for parameter in overload.parameters if parameter.by_position]
        if len(args) > len(positional):
            return None
        given = dict(zip((parameter.name for parameter in positional), args, strict=False))
        known = {parameter.name for parameter in overload.parameters if parameter.by_name}
        if any(name not in known or name in given for name in kwargs):
            return None
        given |= kwargs
        for parameter in overload.parameters:
            if parameter.name not in given:
                if not parameter.has_default:
                    return None
            elif not self._fits(given[parameter.name], parameter.annotation):
                return None
        return given

    def _is_pointer(self, annotation: str) -> bool:
        resolved = self._resolve(annotation)
        return annotation == "object" or (isinstance(resolved, type) and not hasattr(resolved, "__members__"))

    def _fits(self, value: Any, annotation: str) -> bool:
        """Whether pybind11 converts `value` to what the annotation says.

        Stricter than pybind11 in two things that it takes silently and nobody means: an enumeration's member where a
        number is wanted, and a number where a `bool` is.
        """
        annotation = annotation.strip()
        alternatives = _split(annotation, "|")
        if len(alternatives) > 1:
            return any(self._fits(value, alternative) for alternative in alternatives)
        outer, inner = _generic(annotation)
        if outer in ("Optional", "typing.Optional"):
            return value is None or self._fits(value, inner[0])
        if outer in ("Union", "typing.Union"):
            return any(self._fits(value, alternative) for alternative in inner)
        if inner:
            return self._fits_many(value, outer, inner)
        check = _PLAIN.get(outer)
        if check is not None:
            return check(value)
        resolved = self._resolve(outer)
        if isinstance(resolved, type):
            return isinstance(value, resolved) or self._converts(value, resolved)
        self.unknown.add(annotation)
        return True

    def _fits_many(self, value: Any, outer: str, inner: list[str]) -> bool:
        kind = outer.rsplit(".", 1)[-1].lower()
        if kind == "ndarray":
            return isinstance(value, np.ndarray)
        if kind == "callable":
            return callable(value)
        if kind == "dict":
            return isinstance(value, collections.abc.Mapping)
        if isinstance(value, str | bytes) or not isinstance(value, collections.abc.Sequence | np.ndarray):
            return kind == "iterable" and isinstance(value, collections.abc.Iterable)
        if kind == "tuple":
            return len(value) == len(inner) and all(map(self._fits, value, inner))
        return all(self._fits(element, inner[0]) for element in value)

    def _converts(self, value: Any, wanted: type) -> bool:
        """The conversions that the bindings register: sequences to `Dims`, arrays to `Weights`."""
        name = wanted.__name__
        if name.startswith(("Dims", "Permutation")):
            try:
                wanted(tuple(value))
            except TypeError:
                return False
            return True
        return name == "Weights" and isinstance(value, np.ndarray)

    def _resolve(self, annotation: str) -> Any:
        """The class that an annotation names: in Python's or, where it was not known yet, in C++'s way."""
        if "[" in annotation or not annotation:
            return None
        path = re.split(r"::|\.", annotation)
        while path and re.fullmatch(r"tensorrt_bindings|tensorrt|nvinfer1|nvonnxparser|v_\d+_\d+", path[0]):
            path = path[1:]
        found: Any = self.module
        for step in path:
            following = getattr(found, step, None)
            if following is None and found is self.module:  # C++'s `IBuilder` is Python's `Builder`
                following = getattr(found, step[1:], None) if step.startswith("I") else None
            if following is None:
                return None
            found = following
        return found if path else None


def _generic(annotation: str) -> tuple[str, list[str]]:
    match = re.fullmatch(r"([\w.:]+)\[(.*)\]", annotation)
    return (match.group(1), _split(match.group(2), ",")) if match else (annotation, [])


def _plain_new(cls: type, *args: Any, **kwargs: Any) -> Any:
    return object.__new__(cls)


def _is_member(value: Any) -> bool:
    return hasattr(type(value), "__members__")


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not _is_member(value)


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, float | np.floating) or _is_int(value)


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "typing.SupportsInt": _is_int,
    "typing.SupportsIndex": _is_int,
    "float": _is_number,
    "typing.SupportsFloat": _is_number,
    "bool": lambda value: isinstance(value, bool | np.bool_),
    "str": lambda value: isinstance(value, str | bytes),
    "bytes": lambda value: isinstance(value, bytes),
    "buffer": _is_buffer,
    "collections.abc.Buffer": _is_buffer,
    "typing_extensions.Buffer": _is_buffer,
    "memoryview": lambda value: isinstance(value, memoryview),
    "slice": lambda value: isinstance(value, slice),
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
    "dict": lambda value: isinstance(value, dict),
    "None": lambda value: value is None,
    "object": lambda value: True,
    "handle": lambda value: True,
    "typing.Any": lambda value: True,
    "Iterable": lambda value: isinstance(value, collections.abc.Iterable),
    "collections.abc.Iterable": lambda value: isinstance(value, collections.abc.Iterable),
    "function": callable,
    "Callable": callable,
    "collections.abc.Callable": callable,
    "numpy.ndarray": lambda value: isinstance(value, np.ndarray),
}
"""The annotations that name no class of TensorRT's, and what pybind11 takes for them."""
