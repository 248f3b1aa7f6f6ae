"""What a suite file may hold: config/schema.yaml, names of notebooks, and what is wrong in one line."""

from pathlib import Path
from typing import Any

import jsonschema
import yaml

from icl_lib.names import unknown
from workflow.notebooks import NOTEBOOKS, OF_STEP

SCHEMA = Path(__file__).resolve().parent.parent / "config" / "schema.yaml"
TAKEN = {"try": "notebooks run by hand", "measure": "make measure", "bench": "make bench"}  # folders of results/


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice in a mapping is an error; yaml itself would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.YAMLError(f"key {key.value} stands there twice, again in line {key.start_mark.line + 1}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_schema(config: Any) -> None:
    """Refuse what the schema does, and keys that are no notebook's where its keys are notebooks, by a ValueError."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    keys, of_model = schema["properties"], schema["properties"]["models"]["items"]
    for part, known in (
        (keys["parameters"], NOTEBOOKS), (keys["intermediate"], OF_STEP), (keys["sweep"], OF_STEP),
        (of_model["properties"]["parameters"], OF_STEP), (of_model, [notebook.key for notebook in OF_STEP.values()]),
    ):
        part["properties"] = dict.fromkeys(known, part["additionalProperties"]) | part.get("properties", {})
        part["additionalProperties"] = False
    for error in jsonschema.Draft202012Validator(schema).iter_errors(config):
        raise ValueError(_one_line(error))
    if (name := config["suite"]) in TAKEN:
        raise ValueError(f"suite is {name!r}, but results/{name} is the folder of {TAKEN[name]}; give it another name")
    if name in config.get("include", []):
        raise ValueError(f"include: {name} is the suite itself, expected others")


def _one_line(error: jsonschema.ValidationError) -> str:
    where = ".".join(map(str, error.absolute_path)) or "suite file"
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        return str(unknown(f"key of {where}", str(next(key for key in error.instance if key not in known)), known))
    if error.validator == "required":
        return f"{where} lacks the key {next(k for k in error.validator_value if k not in error.instance)!r}"
    if error.validator in ("not", "anyOf"):  # the names of parameters
        return f"{where}: {error.instance} is set by the workflow, not here"
    if error.validator == "oneOf":
        return f"{where} is {short(repr(error.instance))}, expected {error.schema['description']}"
    return f"{where}: {short(error.message)}"


def short(message: object) -> str:
    """One line, the middle left out where a value makes it long."""
    line = " ".join(str(message).split())
    return line if len(line) < 400 else f"{line[:200]} ... {line[-150:]}"
