"""The part of the chart's values.schema.json that speaks of the nodes' settings: made from `broker.config`.

So that a wrong setting is refused by `helm install`, and not by a node that starts again and again. Run it after a
change of settings; a test fails as long as the two differ. The rest of the schema is written by hand.
"""

import json
from pathlib import Path
from typing import Any, Final

from broker.config import Settings, describe_settings

SCHEMA: Final = Path(__file__).parents[2] / "deploy" / "helm" / "postbus" / "values.schema.json"
# What the chart says by itself, in the environment, which wins over the file that `config` becomes.
OF_THE_CHART: Final = frozenset(
    {
        "node_id",
        "data_dir",
        "host",
        "client_port",
        "http_port",
        "peer_port",
        "advertised_endpoint",
        "advertised_peer_endpoint",
        "rack",
        "cluster_id",
        "peers",
        "log_format",
    }
)
_UNITS: Final = {"bytes": "([kKmMgGtT][iI]?)?[bB]", "seconds": "ms|s|min|h|d"}
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def config_schema() -> dict[str, Any]:
    """Of the value `config`."""
    described = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            setting.name: _setting(setting.kind, described[setting.name])
            for setting in describe_settings()
            if setting.name not in OF_THE_CHART
        },
    }


def _setting(kind: str, described: dict[str, Any]) -> dict[str, Any]:
    choices = described.get("anyOf", [described])
    is_optional = {"type": "null"} in choices
    bounds = {key: value for choice in choices for key, value in choice.items() if key in _BOUNDS}
    if kind in _UNITS:
        number = "integer" if kind == "bytes" else "number"
        off = "|off" if is_optional else ""
        return {"type": [number, "string"], **bounds, "pattern": rf"^([0-9]+(\.[0-9]+)? ?({_UNITS[kind]})?{off})$"}
    assert not is_optional
    if "enum" in described:
        return {"enum": described["enum"]}
    return {"type": described["type"], **bounds}


def written() -> dict[str, Any]:
    """The schema as it is."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text())
    return schema


if __name__ == "__main__":
    schema = written()
    schema["$defs"]["config"] = config_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")
