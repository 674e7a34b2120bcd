//! Checks of house rules that no compiler makes: the length of functions, import circles between files, and examples in
//! documentation.
//!
//! In reading order: [`source`] (source files without comments, literals and tests), [`functions`], [`imports`], and the
//! checks of this repository. tests/invariants.sh checks the dependencies between crates.

mod functions;
mod imports;
mod source;

use std::path::Path;

use functions::functions;
use source::{Crate, crates};

/// Largest number of lines of a product function, from `fn` to its closing brace.
const MOST_LINES: usize = 80;

#[test]
fn no_product_function_is_longer_than_80_lines() {
    let (mut seen, mut long) = (0, Vec::new());
    for Crate { files, .. } in crates().into_iter().filter(|c| c.name != "tests") {
        for file in files {
            let found = functions(&file.text);
            seen += found.len();
            for f in found.into_iter().filter(|f| f.lines > MOST_LINES) {
                long.push(format!("{}:{}: {} has {} lines", file.path.display(), f.line, f.name, f.lines));
            }
        }
    }
    assert!(seen > 1000, "only {seen} functions found: is the product elsewhere now?");
    assert!(
        long.is_empty(),
        "product functions of more than {MOST_LINES} lines: split each by what it does\n{}",
        long.join("\n")
    );
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let mut found = Vec::new();
    for Crate { name, files } in crates() {
        let modules: Vec<_> = files.iter().map(|f| (f.module.clone(), f.text.as_str())).collect();
        found.extend(imports::circles(&modules).into_iter().map(|circle| format!("{name}: {}", circle.join(" -> "))));
    }
    assert!(
        found.is_empty(),
        "files that import each other in a circle: move what both need to a file of its own, or to the side that makes \
         the arrow single\n{}",
        found.join("\n")
    );
}

#[test]
fn no_documentation_has_an_example_which_nobody_would_run() {
    let mut found = Vec::new();
    for file in crates().into_iter().flat_map(|c| c.files) {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&file.path)).unwrap();
        let fences = text.lines().map(str::trim_start).filter_map(|line| {
            let said = line.strip_prefix("//!").or_else(|| line.strip_prefix("///"))?;
            said.trim_start().strip_prefix("```")
        });
        // Each second fence ends a block.
        for language in fences.step_by(2).filter(|language| *language != "text") {
            found.push(format!("{}: ```{language}", file.path.display()));
        }
    }
    assert!(
        found.is_empty(),
        "examples in documentation, which tests/run.sh does not run (--all-targets): make tests of them, or text\n{}",
        found.join("\n")
    );
}
