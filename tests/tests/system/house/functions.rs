//! Functions of a source text, with their lengths.

use super::source::closing_brace;

/// Function with a body.
#[derive(Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of its `fn`, from 1.
    pub line: usize,
    /// Number of lines from `fn` to the closing brace.
    pub lines: usize,
}

/// All functions of a stripped source text, the inner ones too.
pub fn functions(text: &str) -> Vec<Function> {
    let bytes = text.as_bytes();
    let line_of = |at: usize| bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut found = Vec::new();
    for (at, _) in text.match_indices("fn ") {
        let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let name: String = text[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if in_word || name.is_empty() {
            continue;
        }
        if let Some(open) = body(bytes, at) {
            let (line, last) = (line_of(at), line_of(closing_brace(bytes, open)));
            found.push(Function { name, line, lines: last - line + 1 });
        }
    }
    found
}

/// Position of the brace that opens a function's body; none for a declaration.
fn body(text: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b';' if depth == 0 => return None,
            b'{' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::house::source::stripped;

    fn found(source: &str) -> Vec<Function> {
        functions(&stripped(source).text)
    }

    fn of_lines(lines: usize) -> String {
        format!("/// Long.\nfn long() {{\n{}}}\n", "    x();\n".repeat(lines - 2))
    }

    #[test]
    fn a_function_is_as_long_as_from_its_fn_to_its_closing_brace() {
        for lines in [80, 81] {
            assert_eq!(found(&of_lines(lines)), [Function { name: "long".to_owned(), line: 2, lines }]);
        }
        let split = "pub async fn a(\n    x: [u8; { 1 + 1 }],\n) -> impl Fn()\nwhere\n    T: X,\n{\n}\n";
        assert_eq!(found(split), [Function { name: "a".to_owned(), line: 1, lines: 7 }]);
    }

    #[test]
    fn braces_in_literals_and_comments_do_not_end_a_function() {
        let source = "fn a() {\n    let s = \"}\"; let c = '}'; // }\n    /* } */\n    let r = r#\"}\"#;\n}\n";
        assert_eq!(found(source), [Function { name: "a".to_owned(), line: 1, lines: 5 }]);
    }

    #[test]
    fn declarations_function_types_and_tests_are_no_functions_of_the_product() {
        let source = format!(
            "trait T {{ fn a(&self); }}\ntype F = fn (u8) -> u8;\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            of_lines(100)
        );
        assert_eq!(found(&source), []);
    }
}
