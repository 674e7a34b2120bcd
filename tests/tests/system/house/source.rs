//! Source files of the workspace's crates, without comments, literals and tests.

use std::path::{Path, PathBuf};

/// Library or binary crate of the workspace.
pub struct Crate {
    /// Its directory's name.
    pub name: String,
    /// Its source files, except test modules.
    pub files: Vec<File>,
}

/// Source file.
pub struct File {
    /// Path below the repository's root.
    pub path: PathBuf,
    /// Path of its module; empty for the crate's root.
    pub module: Vec<String>,
    /// Its text as [`stripped`] leaves it.
    pub text: String,
}

/// All crates of the workspace.
pub fn crates() -> Vec<Crate> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let directories = |at: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let mut found: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        found.sort();
        found.retain(|dir| dir.join("Cargo.toml").is_file() && dir.join("src").is_dir());
        found
    };
    let all = [directories(&root.join("common")), directories(&root)].concat();
    assert!(all.len() >= 13, "only {} crates found: update this check", all.len());
    all.iter().map(|dir| read(&root, dir)).collect()
}

fn read(root: &Path, dir: &Path) -> Crate {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mut files, mut tests, mut open) = (Vec::new(), Vec::new(), vec![dir.join("src")]);
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display())) {
            let path = entry.unwrap().path();
            // Each file below bin/ is a crate of its own, without modules.
            if path.is_dir() && path != dir.join("src/bin") {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let module = module(path.strip_prefix(dir.join("src")).unwrap());
                let Stripped { text, test_modules } = stripped(&std::fs::read_to_string(&path).unwrap());
                tests.extend(test_modules.into_iter().map(|name| [&module[..], &[name]].concat()));
                files.push(File { path: path.strip_prefix(root).unwrap().to_owned(), module, text });
            }
        }
    }
    files.retain(|file| !tests.iter().any(|test| file.module.starts_with(test)));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Crate { name, files }
}

/// Path of the module in a file below `src`.
fn module(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let last = parts.last().map_or("", String::as_str);
    if last == "mod" || (parts.len() == 1 && matches!(last, "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Source text without comments, literals and test items.
pub struct Stripped {
    /// The text, with blanks in their places.
    pub text: String,
    /// Names of the test modules in files of their own.
    pub test_modules: Vec<String>,
}

/// Blanks comments, literals and `#[cfg(test)]` items; every line keeps its number.
pub fn stripped(source: &str) -> Stripped {
    let mut text = source.as_bytes().to_vec();
    let mut at = 0;
    while at < text.len() {
        let end = literal_end(&text, at);
        blank(&mut text, at, end);
        at = end.max(at + 1);
    }
    let mut test_modules = Vec::new();
    let mut from = 0;
    while let Some(start) = find(&text, b"#[cfg(", from) {
        let attribute_end = find(&text, b"]", start).map_or(text.len(), |end| end + 1);
        let attribute: String = String::from_utf8_lossy(&text[start..attribute_end]).into_owned();
        from = attribute_end;
        let mut words = attribute.split(|c: char| !c.is_alphanumeric() && c != '_');
        if words.any(|word| word == "test") && !attribute.contains("not(test)") {
            let end = item_end(&text, attribute_end);
            let item = String::from_utf8_lossy(&text[attribute_end..end]).into_owned();
            let name = item.trim().strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
            test_modules.extend(name.map(|name| name.trim().to_owned()));
            blank(&mut text, start, end);
            from = end;
        }
    }
    Stripped { text: String::from_utf8_lossy(&text).into_owned(), test_modules }
}

fn blank(text: &mut [u8], start: usize, end: usize) {
    text[start..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn find(text: &[u8], what: &[u8], from: usize) -> Option<usize> {
    Some(from + text.get(from..)?.windows(what.len()).position(|window| window == what)?)
}

/// End of the comment or literal that starts at `at`; `at` itself if none does.
fn literal_end(text: &[u8], at: usize) -> usize {
    let rest = &text[at..];
    if rest.starts_with(b"//") {
        return find(text, b"\n", at).unwrap_or(text.len());
    }
    if rest.starts_with(b"/*") {
        return find(text, b"*/", at).map_or(text.len(), |end| end + 2);
    }
    let in_word = at > 0 && (text[at - 1].is_ascii_alphanumeric() || text[at - 1] == b'_');
    let raw = [&b"r"[..], b"br", b"cr"].into_iter().find(|prefix| !in_word && rest.starts_with(prefix));
    if let Some(prefix) = raw {
        let hashes = rest[prefix.len()..].iter().take_while(|byte| **byte == b'#').count();
        let quote = prefix.len() + hashes;
        if rest.get(quote) == Some(&b'"') {
            let close = [&b"\""[..], &b"#".repeat(hashes)].concat();
            return find(text, &close, at + quote + 1).map_or(text.len(), |end| end + close.len());
        }
    }
    match rest[0] {
        b'"' => quoted_end(text, at, b'"'),
        // A character, and not a lifetime: escaped, or closed after one character, which may have several bytes.
        b'\'' if rest.get(1) == Some(&b'\\') => quoted_end(text, at, b'\''),
        b'\'' => {
            let length = rest[1..].iter().skip(1).take_while(|byte| **byte & 0xc0 == 0x80).count() + 1;
            if rest.get(1 + length) == Some(&b'\'') { at + length + 2 } else { at }
        }
        _ => at,
    }
}

fn quoted_end(text: &[u8], at: usize, quote: u8) -> usize {
    let mut end = at + 1;
    while end < text.len() && text[end] != quote {
        end += if text[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(text.len())
}

/// End of the item from `at` on: its `;`, or the brace that closes its first one.
fn item_end(text: &[u8], at: usize) -> usize {
    let first = text[at..].iter().position(|byte| matches!(byte, b';' | b'{')).map_or(text.len(), |n| at + n);
    if text.get(first) == Some(&b'{') { closing_brace(text, first) + 1 } else { (first + 1).min(text.len()) }
}

/// Position of the brace that closes the one at `open`; the last byte if none does.
pub fn closing_brace(text: &[u8], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in text.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    text.len() - 1
}

#[test]
fn comments_literals_and_test_items_are_blanked_and_every_line_keeps_its_number() {
    let source = r##"fn a<'a>(x: &'a str) -> char { // }
    /* } */ let s = "} \" }"; let r = r#"} " }"#; let b = b'}';
    match x { _ => '\'' } // '"'
}
#[cfg(test)]
mod tests { fn hidden() { } }
#[cfg(not(test))]
fn kept() { let ä = 'ä'; }
#[cfg(all(test, feature = "cuda"))]
mod far;
"##;
    let Stripped { text, test_modules } = stripped(source);
    assert_eq!(text.lines().count(), source.lines().count());
    assert_eq!((text.matches('{').count(), text.matches('}').count()), (3, 3), "{text}");
    assert!(text.contains("&'a str") && text.contains("fn kept") && !text.contains("hidden"), "{text}");
    assert_eq!(test_modules, ["far"]);
}
