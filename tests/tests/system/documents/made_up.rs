//! The checker on small trees that are made up: it is silent where everything is there, and tells each kind of mistake.

use super::problems;
use super::tree::Tree;

/// A small tree in which everything is there.
const GOOD: [(&str, &str); 5] = [
    (
        "README.md",
        "# A tool\n\nSee [the model](docs/MODEL.md#2-parts-of-it) and `src/lib.rs`.\n\n    cargo test -p tool --test whole adds_up\n",
    ),
    ("docs/MODEL.md", "# Model\n\n## 1. Parts\n\n## 2. Parts of it\n\n### 2.1 More\n"),
    ("Cargo.toml", "[package]\nname = \"tool\"\n"),
    ("src/lib.rs", "//! As MODEL.md 2.1 has it (docs/MODEL.md, \"1. Parts\").\n"),
    ("tests/whole.rs", "#[test]\nfn it_adds_up() {}\n"),
];

fn with(path: &str, text: &str) -> Vec<String> {
    let files = GOOD.iter().map(|&(p, t)| (p.to_owned(), t.to_owned()));
    problems(&Tree::new(files.chain([(path.to_owned(), text.to_owned())])))
}

#[test]
fn nothing_is_said_of_a_tree_in_which_everything_is_there() {
    assert_eq!(with("empty", ""), [""; 0]);
    let harmless = "`cargo tree -p tool`, `a/b`, `main`, `*.md`, https://a.org/B.md, `.rs`, [out](https://a.org/x.rs)";
    assert_eq!(with("harmless.md", harmless), [""; 0]);
}

#[test]
fn every_kind_of_name_that_leads_nowhere_is_told_with_its_line() {
    let cases = [
        ("a.rs", "//! GONE.md\n", "a.rs:1: no document GONE.md"),
        ("a.rs", "\n// (MODEL.md 2.2)", "a.rs:2: MODEL.md has no section 2.2"),
        ("a.rs", "// MODEL.md, \"Whole\"", "a.rs:1: MODEL.md has no section \"Whole\""),
        ("b.md", "\n\n[x](src/gone.rs)", "b.md:3: link to src/gone.rs: no src/gone.rs"),
        (
            "b.md",
            "[x](docs/MODEL.md#3-gone)",
            "b.md:1: link to docs/MODEL.md#3-gone: no heading #3-gone in docs/MODEL.md",
        ),
        ("b.md", "# A\n[x](#b)", "b.md:2: link to #b: no heading #b in b.md"),
        ("b.md", "see `src/gone.rs`", "b.md:1: no src/gone.rs"),
        ("b.md", "see `gone.toml`", "b.md:1: no gone.toml"),
        ("b.md", "below `docs/gone/`", "b.md:1: no docs/gone/"),
        ("b.md", "`cargo test -p gone`", "b.md:1: cargo: no package gone"),
        ("b.md", "    cargo test -p tool --test gone", "b.md:1: cargo: tool has no test gone"),
        ("b.md", "`cargo run -p tool --bin gone -- --x`", "b.md:1: cargo: tool has no bin gone"),
        ("b.md", "`cargo test -p tool gone_name`", "b.md:1: cargo: tool has no test named gone_name"),
    ];
    for (path, text, want) in cases {
        assert_eq!(with(path, text), [want], "{text:?}");
    }
}
