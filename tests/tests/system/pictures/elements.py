"""Elements of an SVG as Python's XML parser reads it, as JSON: elements.py FILE. Fails for any that is not of SVG."""

import json
import sys
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"

found = []
for element in ElementTree.parse(sys.argv[1]).iter():
    assert element.tag.startswith(SVG), element.tag
    hint = element.findtext(SVG + "title") or ""
    tag = element.tag[len(SVG) :]
    found.append({"tag": tag, "text": element.text or "", "hint": hint, "attributes": element.attrib})
json.dump(found, sys.stdout)
