"""The type checks of the suite: beartype and jaxtyping, by the annotations of all functions of some modules.

jaxtyping's own import hook checks the same, but builds the checks of an inner function again whenever its outer
function runs, and checks arguments twice: under it, the tests of attribution took a third longer.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import is_dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

_compile = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Compile the checks of a function. An int is accepted where float is annotated, as type checkers do."""

_checks: dict[tuple[str, str, int], tuple[Callable[..., Any], Callable[[Any], Any], bool]] = {}


def checked(function: Any) -> Any:
    """Return a function that checks its arguments and its result at each call; for a dataclass, those of its fields.

    The checks are compiled at the first call, when all names of the annotations are known, and then kept: an inner
    function is decorated again at each call of the outer one.
    """
    if inspect.isclass(function):
        if is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = checked(function.__init__)
        return function
    if not function.__annotations__:
        return function
    key = function.__module__, function.__qualname__, function.__code__.co_firstlineno

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if key not in _checks:
            _checks[key] = _checks_of(function)
        check_arguments, check_result, names_axes = _checks[key]
        if not names_axes:
            check_arguments(*args, **kwargs)
            return check_result(function(*args, **kwargs))
        with jaxtyped("context"):  # in which the name of an axis stands for one size
            check_arguments(*args, **kwargs)
            return check_result(function(*args, **kwargs))

    return call


def _checks_of(function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[[Any], Any], bool]:
    """Return functions of a function's arguments, and of its result, that raise where an annotation does not hold.

    And whether an annotation is, or may be, one of jaxtyping.
    """
    hints = get_type_hints(function, include_extras=True)
    names_axes = any(word in repr(hints) for word in ("jaxtyping", "ForwardRef"))
    result = {"return": hints.pop("return", Any)}
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.empty if parameter.default is parameter.empty else None
        parameters.append(parameter.replace(annotation=parameter.empty, default=default))
    of_arguments = _empty(function, f"def call{inspect.Signature(parameters)}: pass", hints)
    of_arguments.__defaults__ = function.__defaults__
    of_arguments.__kwdefaults__ = function.__kwdefaults__
    of_result = _empty(function, "def call(result): return result", result)
    return _compile(of_arguments), _compile(of_result), names_axes


def _empty(function: Callable[..., Any], source: str, hints: dict[str, Any]) -> Any:
    """Return the function ``call`` of the source, with a name for the messages and annotations."""
    scope: dict[str, Any] = {}
    exec(source, scope)
    call = scope["call"]
    call.__module__, call.__name__, call.__qualname__ = function.__module__, function.__name__, function.__qualname__
    call.__annotations__ = hints
    return call


class _Decorating(ast.NodeTransformer):
    """Decorate every function with `checked` before its other decorators, and every class after them."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list.append(self._decorator(node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list.insert(0, self._decorator(node))
        return self.generic_visit(node)

    def _decorator(self, node: ast.AST) -> ast.expr:
        decorator = ast.parse(f"__import__({__name__!r}, fromlist=['checked']).checked", mode="eval").body
        return ast.fix_missing_locations(ast.copy_location(decorator, node))


class _Loader(SourceFileLoader):
    """A loader of a module with decorated functions, which writes and reads no compiled file."""

    def get_code(self, fullname: str) -> CodeType:
        tree = _Decorating().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, modules: Collection[str]) -> None:
        self.modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(f"{fullname}.".startswith(f"{module}.") for module in self.modules):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def check_modules(modules: Collection[str]) -> None:
    """Check the calls of all functions of the named modules and packages, once they are imported."""
    sys.meta_path.insert(0, _Finder(modules))
