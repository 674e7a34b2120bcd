//! Tables as comma-separated values (RFC 4180): a line of names, then records, whose fields may stand in quotation marks.

use std::path::Path;

use super::error::EvalError;
use super::records::text;

/// Characters that an error shows of a line of names.
const SHOWN: usize = 120;

/// Some fields of a record.
#[derive(Debug, PartialEq)]
pub struct Record<const N: usize> {
    /// Line of the file on which it starts, from 1.
    pub line: usize,
    /// The fields, in the order in which they were asked for.
    pub fields: [String; N],
}

/// The named columns of a table.
///
/// # Errors
/// A file that cannot be used, or lacks a column; a record that is shorter or longer than the line of names.
pub fn read<const N: usize>(path: &Path, columns: [&str; N]) -> Result<Vec<Record<N>>, EvalError> {
    let wrong = |line: usize, what: &str| EvalError::malformed(path, format!("line {line}: {what}"));
    let mut records = records(&text(path)?).map_err(|line| wrong(line, "a quotation mark is not closed"))?.into_iter();
    let (_, header) = records.next().unwrap_or_default();
    let mut places = [0; N];
    for (place, column) in places.iter_mut().zip(columns) {
        let found = header.iter().position(|name| name.trim() == column);
        *place = found.ok_or_else(|| {
            // What is no table may be one line as long as its file.
            let names: String = header.join(",").chars().take(SHOWN).collect();
            wrong(1, &format!("no column {column} in {names:?}; needed is a table (CSV) with {}", columns.join(", ")))
        })?;
    }
    let record = |(line, mut fields): (usize, Vec<String>)| {
        if fields.len() != header.len() {
            let what = format!("{} fields, and the line of names has {}", fields.len(), header.len());
            return Err(wrong(line, &what));
        }
        Ok(Record { line, fields: places.map(|place| std::mem::take(&mut fields[place])) })
    };
    records.map(record).collect()
}

/// Records of a text with the lines on which they start, without empty lines; the line of a quotation mark that is not closed.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, usize> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut records, mut fields, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut start, mut quoted) = (1, 1, None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_end = c == '\n' && quoted.is_none();
        match c {
            '"' if quoted.is_some() && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted.is_some() => quoted = None,
            c if quoted.is_some() => field.push(c),
            '"' if field.is_empty() => quoted = Some(line),
            ',' => fields.push(std::mem::take(&mut field)),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                fields.push(std::mem::take(&mut field));
                records.push((start, std::mem::take(&mut fields)));
            }
            c => field.push(c),
        }
        line += usize::from(c == '\n');
        start = if is_end { line } else { start };
    }
    if let Some(line) = quoted {
        return Err(line);
    }
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push((start, fields));
    }
    records.retain(|(_, fields)| fields.iter().any(|field| !field.is_empty()));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<(usize, Vec<String>)> {
        records(text).unwrap()
    }

    #[test]
    fn fields_are_parted_by_commas_outside_of_quotation_marks() {
        let text = "a,b\r\n1,\"x, \"\"y\"\"\"\n\n,z\n\"two\nlines\",\"\"";
        let want = [(1, ["a", "b"]), (2, ["1", "x, \"y\""]), (4, ["", "z"]), (5, ["two\nlines", ""])];
        assert_eq!(fields(text), want.map(|(line, fields)| (line, fields.map(str::to_owned).to_vec())));
        assert!(fields("").is_empty());
        assert_eq!(records("a\n\"b\nc"), Err(2));
    }

    #[test]
    fn columns_are_found_by_name_and_what_is_wrong_is_told_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read(file.path(), ["b", "a"])
        };
        let record = Record { line: 2, fields: ["2".to_owned(), "1".to_owned()] };
        assert_eq!(read("a,other,b\n1,x,2\n").unwrap(), [record]);
        assert!(read("a,c\n1,2\n").unwrap_err().to_string().contains("no column b"));
        let json = read(&format!("[{}]", "{\"b\": 1}, ".repeat(1000))).unwrap_err().to_string();
        assert!(json.contains("no column b") && json.len() < 400, "{json}");
        assert!(read("").unwrap_err().to_string().contains("no column b"));
        assert!(read("a,b\n1,2\n3\n").unwrap_err().to_string().contains("line 3: 1 fields"));
    }
}
