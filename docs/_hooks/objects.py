"""What the reader of sources cannot see: fields of equinox modules are arguments."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import sys

import griffe

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import plan

FIELDS = {"eqx.field", "equinox.field", "dataclasses.field"}


class Objects(griffe.Extension):
    """Gives dataclasses of any kind their signature, and links the code words of docstrings."""

    def on_function_instance(self, *, node, func: griffe.Function, **kwargs) -> None:
        if not isinstance(node, ast.FunctionDef):
            return
        arguments = node.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            parameter = func.parameters[argument.arg]
            parameter.annotation = _annotation(argument.annotation, parameter.annotation)
        func.returns = _annotation(node.returns, func.returns)

    def on_attribute_instance(self, *, node, attr: griffe.Attribute, **kwargs) -> None:
        if isinstance(node, ast.AnnAssign):
            attr.annotation = _annotation(node.annotation, attr.annotation)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs) -> None:
        if pkg.path in plan.PACKAGES:
            _visit(pkg, loader)


def _annotation(node, parsed):
    """As written, if there is text in it: shapes are text, not expressions."""
    if node is None or isinstance(node, ast.Constant):  # a name that is only known later
        return parsed
    if not any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(node)):
        return parsed
    return ast.unparse(node).replace("'", '"')


def _visit(obj: griffe.Object, loader: griffe.GriffeLoader) -> None:
    for member in list(obj.members.values()):
        if member.is_alias:
            continue
        if member.docstring:
            member.docstring.value = plan.link(member.docstring.value, plan.family_of(member.path))
        if member.is_class and not member.name.startswith("_"):
            _sign(member, loader)
        if member.is_class or member.is_module:
            _visit(member, loader)


def _runtime(cls: griffe.Class):
    found = importlib.import_module(cls.module.path)
    for name in cls.path.removeprefix(f"{cls.module.path}.").split("."):
        found = getattr(found, name)
    return found


def _sign(cls: griffe.Class, loader: griffe.GriffeLoader) -> None:
    if "__init__" in cls.members:
        return
    runtime = _runtime(cls)
    if not dataclasses.is_dataclass(runtime) or inspect.isabstract(runtime):
        return
    written = {}  # the fields as the sources have them, of the nearest class that has them
    for parent in reversed(runtime.__mro__):
        if parent.__module__.partition(".")[0] in plan.PACKAGES:
            source = loader.modules_collection[f"{parent.__module__}.{parent.__qualname__}"]
            written |= {name: m for name, m in source.members.items() if m.is_attribute}
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, parameter in inspect.signature(runtime).parameters.items():
        field = written.get(name)
        parameters.append(
            griffe.Parameter(
                name,
                annotation=field.annotation if field else None,
                kind=griffe.ParameterKind[parameter.kind.name.lower()],
                default=_default(parameter.default, field.value if field else None),
            )
        )
    init = griffe.Function("__init__", parent=cls, parameters=griffe.Parameters(*parameters))
    cls.set_member("__init__", init)


def _default(runtime, written):
    """A default as its reader would write it."""
    if runtime is inspect.Parameter.empty:
        return None
    if isinstance(runtime, bool | int | float | str | None):
        return repr(runtime)
    if isinstance(written, griffe.ExprCall) and str(written.function) in FIELDS:
        given = {a.name: a.value for a in written.arguments if isinstance(a, griffe.ExprKeyword)}
        if "default_factory" in given:
            return griffe.ExprCall(function=given["default_factory"], arguments=[])
        return given.get("default", "...")
    return written if written is not None else "..."
