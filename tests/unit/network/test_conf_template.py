"""Templates of CNI configurations: containerd's own, each action, and every mistake refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.network.conf import parse_network
from bridge.network.conf_template import Value, render

DUAL: dict[str, Value] = {
    "PodCIDR": "10.0.0.0/24",
    "PodCIDRRanges": ["10.0.0.0/24", "2001:db8::/64"],
    "Routes": ["0.0.0.0/0", "::/0"],
}
# The lines that containerd's documentation gives for dual stack.
RANGES = '"ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],'
ROUTES = '"routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]'


def test_the_templates_that_containerds_users_have() -> None:
    assert render('{"subnet": "{{.PodCIDR}}"}', DUAL, "t") == '{"subnet": "10.0.0.0/24"}'
    assert render(RANGES, DUAL, "t") == '"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "2001:db8::/64"}]],'
    assert render(ROUTES, DUAL, "t") == '"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]'


def test_the_example_of_the_documents_makes_a_network() -> None:
    page = (Path(__file__).parents[3] / "docs" / "kubelet.md").read_text()
    (example,) = (block for block in page.split("```")[1::2] if ".PodCIDRRanges" in block)
    network = parse_network(render(example, DUAL, "t").encode(), "t.conflist")
    assert [plugin.type for plugin in network.plugins] == ["bridge", "portmap"]
    assert network.plugins[0].body["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{{ .PodCIDR }}", "10.0.0.0/24"),
        ("{{$.PodCIDR}}", "10.0.0.0/24"),
        ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
        ("{{range $x := .Routes}}{{$x}} {{$.PodCIDR}};{{end}}", "0.0.0.0/0 10.0.0.0/24;::/0 10.0.0.0/24;"),
        ("{{range $i, $x := .Routes}}{{range $j, $y := $.Routes}}{{$i}}{{$j}} {{end}}{{end}}", "00 01 10 11 "),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .Empty}}x{{else}}y{{end}}{{if .Routes}}z{{end}}", "yz"),
        ('{{if .Empty}}1{{else if eq .PodCIDR "x"}}2{{else if .Routes}}3{{else}}4{{end}}!', "3!"),
        ("{{index .PodCIDRRanges 1}} {{len .Routes}} {{not .Empty}} {{ne 1 1}}", "2001:db8::/64 2 true false"),
        ("a {{- .PodCIDR -}}\n\t b", "a10.0.0.0/24b"),
        ("a{{/* a comment {of any kind} */}}b", "ab"),
        ("a {{- /* trims */ -}} b", "ab"),
    ],
)
def test_each_action(template: str, expected: str) -> None:
    assert render(template, {**DUAL, "Empty": []}, "t") == expected


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{.PodCidr}}", "line 1: {{.PodCidr}}: .PodCidr does not exist; there are .PodCIDR, .PodCIDRRanges, .Routes"),
        ("{{range .Routes}}{{.PodCIDR}}{{end}}", ".PodCIDR does not exist"),
        ("{{$x}}", "$x does not exist"),
        ("{{range $x := .Routes}}{{end}}{{$x}}", "$x does not exist"),
        ("\n\n{{.Routes}}", "line 3: {{.Routes}} is a list"),
        ("{{range .PodCIDR}}{{end}}", "it is no list"),
        ("\n{{if .Routes}}", "line 2: {{if .Routes}} has no {{end}}"),
        ("{{if .Routes}}{{else}}{{else}}{{end}}", "{{else}} closes nothing"),
        ("{{end}}", "{{end}} closes nothing"),
        ("{{range .Routes}}{{else if .Routes}}{{end}}", "is not understood"),
        ("{{if}}{{end}}", "{{if}} is not understood"),
        ("{{}}", "is not understood"),
        ("{{.PodCIDR", "'{{' is never closed"),
        ('{{template "x"}}', "is not understood"),
        ("{{.PodCIDR | printf}}", "is not understood"),
        ("{{printf}}", "{{printf}} is not understood"),
        ("{{with .Routes}}{{end}}", "is not understood"),
        ("{{range $a, $b, $c := .Routes}}{{end}}", "one or two $variables"),
        ("{{range a := .Routes}}{{end}}", "one or two $variables"),
        ("{{index .Routes}}", "index takes 2 arguments"),
        ("{{index .Routes 7}}", "out of range"),
        ("{{len 1}}", "line 1"),
        ("{{if 1}}" * 40 + "{{end}}" * 40, "nested deeper than 32"),
    ],
)
def test_what_is_refused_names_its_line(template: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(template, DUAL, "net.d/cni.template")
    assert problem in str(caught.value)
    assert "net.d/cni.template: line " in str(caught.value)
