"""Reads a text of metrics with the parser of Prometheus' own Python client; prints every series and its value as one JSON object."""

import json
import sys
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families

series = {}
for family in text_string_to_metric_families(Path(sys.argv[1]).read_text()):
    if not family.documentation:
        sys.exit(f"error: {family.name} says nothing about itself")
    for sample in family.samples:
        labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
        name = sample.name + (f"{{{labels}}}" if labels else "")
        if name in series:
            sys.exit(f"error: {name} is there twice")
        series[name] = sample.value
print(json.dumps(series))
