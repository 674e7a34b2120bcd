//! Import circles between the files of one crate.
//!
//! A file that names something of another file, in a `use` or in a path from `crate`, `super` or `self` on, imports that
//! file; where the other one only re-exports it, the file that defines it. A file may import from its own ancestors: a
//! folder's parent file and its parts are one thing, read together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Path of a module in its crate.
type Module = Vec<String>;

/// Paths that a file names: each with the name that a `use` gives it, none outside of a `use`.
type Names = Vec<(Vec<String>, Option<String>)>;

/// The shortest circle through each file that lies on one, as the names of its files, the first one repeated at the end.
pub fn circles(files: &[(Module, &str)]) -> BTreeSet<Vec<String>> {
    let named: BTreeMap<&Module, Names> = files.iter().map(|(module, text)| (module, names(text))).collect();
    let imports = |module: &Module| -> BTreeSet<Module> {
        let targets = named[module].iter().filter_map(|(path, _)| resolve(&named, module, path, 0));
        targets.filter(|target| !module.starts_with(target)).collect()
    };
    let edges: BTreeMap<&Module, BTreeSet<Module>> = named.keys().map(|module| (*module, imports(module))).collect();
    named.keys().filter_map(|module| shortest(&edges, module)).collect()
}

/// The shortest way from a file back to itself, from its least file on.
fn shortest(edges: &BTreeMap<&Module, BTreeSet<Module>>, start: &Module) -> Option<Vec<String>> {
    let mut before: BTreeMap<Module, Module> = BTreeMap::new();
    let mut queue = VecDeque::from([start.clone()]);
    while let Some(at) = queue.pop_front() {
        for next in &edges[&at] {
            if next == start {
                let mut circle = vec![at];
                while circle[0] != *start {
                    circle.insert(0, before[&circle[0]].clone());
                }
                let least = circle.iter().enumerate().min_by_key(|(_, module)| *module).map_or(0, |(n, _)| n);
                circle.rotate_left(least);
                circle.push(circle[0].clone());
                return Some(circle.iter().map(|module| shown(module)).collect());
            }
            if !before.contains_key(next) {
                before.insert(next.clone(), at.clone());
                queue.push_back(next.clone());
            }
        }
    }
    None
}

fn shown(module: &[String]) -> String {
    if module.is_empty() { "crate".to_owned() } else { module.join("::") }
}

/// The file that a path of another one leads to; none for a path out of the crate.
fn resolve(named: &BTreeMap<&Module, Names>, from: &Module, path: &[String], depth: usize) -> Option<Module> {
    let mut at = from.clone();
    let mut rest = path.iter().peekable();
    match path.first()?.as_str() {
        "crate" => at.clear(),
        "self" | "super" => {}
        child if named.contains_key(&[from.as_slice(), &[child.to_owned()]].concat()) => {}
        _ => return None,
    }
    rest.next_if(|part| *part == "crate" || *part == "self");
    while rest.next_if(|part| *part == "super").is_some() {
        at.pop()?;
    }
    while let Some(part) = rest.peek() {
        let child = [at.as_slice(), &[(*part).clone()]].concat();
        if !named.contains_key(&child) {
            break;
        }
        at = child;
        rest.next();
    }
    // A chain of re-exports is shorter than this, unless it goes in a circle itself.
    if let (Some(name), 0..8) = (rest.next(), depth) {
        let used = named.get(&at)?.iter().find(|(_, given)| given.as_ref() == Some(name));
        if let Some(target) = used.and_then(|(path, _)| resolve(named, &at, path, depth + 1)) {
            return Some(target);
        }
    }
    named.contains_key(&at).then_some(at)
}

/// Words, and every other character that is not white space.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if word(first) { rest.find(|c| !word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    found
}

/// All paths that a stripped source text names.
fn names(text: &str) -> Names {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at] {
            "use" => {
                at += 1;
                tree(&tokens, &mut at, &[], &mut found);
            }
            "crate" | "super" | "self" if tokens.get(at + 1..at + 3) == Some(&[":", ":"]) => {
                let mut path = vec![tokens[at].to_owned()];
                while tokens.get(at + 1..at + 3) == Some(&[":", ":"]) {
                    at += 3;
                    path.extend(tokens.get(at).map(|part| (*part).to_owned()));
                }
                found.push((path, None));
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The paths of a `use` tree from token `at` on, which ends behind it.
fn tree(tokens: &[&str], at: &mut usize, prefix: &[String], found: &mut Names) {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(*at) {
        match *token {
            ":" => {}
            "{" => {
                while !matches!(tokens.get(*at), Some(&"}") | None) {
                    *at += 1;
                    if !matches!(tokens.get(*at), Some(&"}") | None) {
                        tree(tokens, at, &path, found);
                    }
                }
                *at += 1;
                return;
            }
            "as" => {
                *at += 1;
                let alias = tokens.get(*at).map(|alias| (*alias).to_owned());
                *at += 1;
                found.push((path, alias));
                return;
            }
            "," | "}" | ";" => break,
            "*" => {}
            part => path.push(part.to_owned()),
        }
        *at += 1;
    }
    // `{self}` names the module itself.
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = path.last().cloned();
    found.push((path, name));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let module = |path: &str| path.split("::").filter(|p| !p.is_empty()).map(str::to_owned).collect();
        let files: Vec<(Module, &str)> = files.iter().map(|(path, text)| (module(path), *text)).collect();
        circles(&files).into_iter().map(|circle| circle.join(" -> ")).collect()
    }

    #[test]
    fn two_files_that_import_each_other_are_named() {
        let circle = [("", "mod a; mod b;"), ("a", "use crate::b::B;"), ("b", "use std::fmt; use super::a::A;")];
        assert_eq!(found(&circle), ["a -> b -> a"]);
        let single = [("", "mod a; mod b;"), ("a", "use crate::b::B;"), ("b", "use std::fmt;")];
        assert_eq!(found(&single), [""; 0]);
    }

    #[test]
    fn groups_aliases_and_paths_in_code_are_imports() {
        let a = ("a", "use crate::{c::{self, C as D}, x::X};");
        assert_eq!(found(&[a, ("c", "fn f() { crate::a::g() }"), ("x", "")]), ["a -> c -> a"]);
        assert_eq!(found(&[a, ("c", ""), ("x", "pub(crate) use super::a::*;")]), ["a -> x -> a"]);
    }

    #[test]
    fn a_circle_of_three_and_one_through_a_re_export_are_found() {
        let three = [("a", "use crate::b::B;"), ("b", "use crate::c::C;"), ("c", "use crate::a::A;")];
        assert_eq!(found(&three), ["a -> b -> c -> a"]);
        let re_export = [("", "mod a; mod b; pub use b::B;"), ("a", "use crate::B;"), ("b", "use crate::a::A;")];
        assert_eq!(found(&re_export), ["a -> b -> a"]);
        let folder = [("a", "pub use x::X;"), ("a::x", "use crate::b::B;"), ("b", "use crate::a::X;")];
        assert_eq!(found(&folder), ["a::x -> b -> a::x"]);
    }

    #[test]
    fn a_part_may_import_from_its_parent_and_the_parent_from_it() {
        assert_eq!(
            found(&[("", "mod a;"), ("a", "mod x; use x::X;"), ("a::x", "use super::A; use crate::Root;")]),
            [""; 0]
        );
        // But not the parent from a stranger that imports it again.
        let through = [("a", "use x::X;"), ("a::x", "use crate::b::B;"), ("b", "use crate::a::A;")];
        assert_eq!(found(&through), ["a -> a::x -> b -> a"]);
    }
}
