//! Pictures of text, bars and frames as SVG files that need nothing besides themselves.
//!
//! Colours belong to tones, each with one for light and one for dark surroundings; the background is part of the picture, so
//! that text has its contrast wherever it is shown. Programs that know no style sheet, or no dark surroundings, show the light
//! one. [`ticks`] are those of a time axis.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub mod ticks;

/// Ellipsis of a text that was cut.
const CUT: char = '…';

/// Purpose of a shape, which says its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Background.
    Paper,
    /// Text.
    Ink,
    /// Text beside the point.
    Faint,
    /// Lines of an axis.
    Rule,
    /// What the picture is about.
    Bar,
    /// What belongs to it.
    Soft,
}

impl Tone {
    const ALL: [Tone; 6] = [Tone::Paper, Tone::Ink, Tone::Faint, Tone::Rule, Tone::Bar, Tone::Soft];

    /// Name of its class, colour in light and in dark surroundings.
    fn colours(self) -> [&'static str; 3] {
        match self {
            Tone::Paper => ["paper", "#ffffff", "#15181d"],
            Tone::Ink => ["ink", "#1f2328", "#e6e8eb"],
            Tone::Faint => ["faint", "#59636e", "#9ca6b0"],
            Tone::Rule => ["rule", "#c3cbd3", "#4a525b"],
            Tone::Bar => ["bar", "#0969da", "#4493f8"],
            Tone::Soft => ["soft", "#b6d7fb", "#1f4b80"],
        }
    }

    /// Attributes of a shape of it.
    fn attributes(self) -> String {
        let [class, light, _] = self.colours();
        format!("class='{class}' fill='{light}'")
    }
}

/// Side of a text that stands at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its start.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// Box from its upper left corner on: x, y, width, height, pixels.
pub type Area = [f64; 4];

/// Picture in the making.
#[derive(Clone, Debug)]
pub struct Drawing {
    width: f64,
    body: String,
}

impl Drawing {
    /// Empty picture, `width` pixels wide.
    pub fn new(width: f64) -> Self {
        Drawing { width, body: String::new() }
    }

    /// Adds a box, with a hint that viewers show beside the pointer.
    pub fn rect(&mut self, tone: Tone, [x, y, width, height]: Area, hint: Option<&str>) {
        let hint = hint.map(|hint| format!("<title>{}</title>", escaped(hint))).unwrap_or_default();
        let _ = writeln!(
            self.body,
            "<rect x='{x:.2}' y='{y:.2}' width='{width:.2}' height='{height:.2}' {}>{hint}</rect>",
            tone.attributes()
        );
    }

    /// Adds a line of text with its baseline at `y`; `size` is that of its font, pixels.
    pub fn text(&mut self, tone: Tone, size: f64, anchor: Anchor, [x, y]: [f64; 2], text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            "<text x='{x:.2}' y='{y:.2}' font-size='{size}' text-anchor='{anchor}' {}>{}</text>",
            tone.attributes(),
            escaped(text)
        );
    }

    /// Adds a JPEG, as large as it fits into an area, in its middle; `frame` is its number in the video.
    pub fn frame(&mut self, [x, y, width, height]: Area, frame: u64, jpeg: &[u8]) {
        let _ = writeln!(
            self.body,
            "<image x='{x:.2}' y='{y:.2}' width='{width:.2}' height='{height:.2}' data-frame='{frame}' \
             href='data:image/jpeg;base64,{}'/>",
            STANDARD.encode(jpeg)
        );
    }

    /// The whole file, `height` pixels high and the rest of a pixel; `title` is for viewers and screen readers.
    pub fn svg(self, height: f64, title: &str) -> String {
        // Drawn in pixels, a part of one would scale the whole.
        let height = height.ceil();
        let dark: String = Tone::ALL
            .into_iter()
            .map(|tone| {
                let [class, _, dark] = tone.colours();
                format!(".{class}{{fill:{dark}}}")
            })
            .collect();
        let (width, title) = (self.width, escaped(title));
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
             font-family='sans-serif' role='img'>\n<title>{title}</title>\n\
             <style>@media (prefers-color-scheme:dark){{{dark}}}</style>\n\
             <rect width='{width}' height='{height}' {}/>\n{}</svg>\n",
            Tone::Paper.attributes(),
            self.body
        )
    }
}

/// Width of a text at most, pixels, in a font that is `size` pixels high. What draws it has a font of its own: this is the
/// width in a wide one (DejaVu Sans), where a digit has 0.636 of the height.
pub fn width_of(text: &str, size: f64) -> f64 {
    text.chars().map(width_of_char).sum::<f64>() * size
}

/// Width of a character, in heights of the font.
fn width_of_char(c: char) -> f64 {
    match c {
        ' ' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | 'i' | 'j' | 'l' | 'I' => 0.36,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | CUT => 1.0,
        'A'..='Z' => 0.75,
        // Scripts whose characters are squares, and emoji.
        '\u{1100}'.. => 1.0,
        _ => 0.64,
    }
}

/// A text, cut where it would be wider than `width` pixels.
pub fn fitted(text: &str, size: f64, width: f64) -> String {
    if width_of(text, size) <= width {
        return text.to_owned();
    }
    let mut left = width / size - width_of_char(CUT);
    let fits = |c: &char| {
        left -= width_of_char(*c);
        left >= 0.0
    };
    let kept: String = text.chars().take_while(fits).collect();
    format!("{}{CUT}", kept.trim_end())
}

/// A text in lines of at most `width` pixels, broken at spaces where there are any; the last of `most` lines is cut.
pub fn wrapped(text: &str, size: f64, width: f64, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = text.trim();
    while lines.len() + 1 < most && width_of(left, size) > width {
        let mut room = width / size;
        let over = left.char_indices().find(|(_, c)| {
            room -= width_of_char(*c);
            room < 0.0
        });
        let over = over.map_or(left.len(), |(at, _)| at);
        // A word that is wider than a line is broken; one character at least is on each.
        let first = left.chars().next().map_or(0, char::len_utf8);
        let end = left[..over].rfind(' ').filter(|&at| at > 0).unwrap_or(over.max(first));
        lines.push(left[..end].trim_end().to_owned());
        left = left[end..].trim_start();
    }
    if !left.is_empty() || lines.is_empty() {
        lines.push(fitted(left, size, width));
    }
    lines
}

/// A text as it stands between tags. What XML cannot hold is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_it_would_be_too_wide_and_nowhere_else() {
        assert_eq!(fitted("0123456789", 10.0, 64.0), "0123456789");
        assert_eq!(fitted("0123456789", 10.0, 63.0), "01234567…");
        assert_eq!(fitted("one two", 10.0, 38.0), "one…");
        assert_eq!((fitted("", 10.0, 0.0), fitted("x", 10.0, 0.0)), (String::new(), "…".to_owned()));
        assert!(width_of("中文", 10.0) > width_of("ab", 10.0));
    }

    #[test]
    fn a_long_text_is_broken_at_spaces_or_within_a_word_and_then_cut() {
        let lines = |text, most| wrapped(text, 10.0, 42.0, most).join("|");
        assert_eq!(lines("one two xxxxxxxx yyy", 9), "one|two|xxxxxx|xx yyy");
        assert_eq!((lines("one two", 1), lines("short", 2)), ("one t…".to_owned(), "short".to_owned()));
        assert_eq!((lines("", 2), lines("中文中文中文", 2)), (String::new(), "中文中文|中文".to_owned()));
        assert_eq!(wrapped("中文", 10.0, 1.0, 3), ["中", "文"]);
    }

    #[test]
    fn what_xml_cannot_hold_does_not_reach_the_file() {
        let mut drawing = Drawing::new(10.0);
        drawing.text(Tone::Ink, 12.0, Anchor::Start, [0.0, 0.0], "a<b>&\"\u{1b}\nc");
        drawing.rect(Tone::Bar, [0.0; 4], Some("'\u{ffff}"));
        let svg = drawing.svg(10.0, "</title>");
        for due in
            [">a&lt;b&gt;&amp;&quot;\u{fffd} c</text>", "<title>'\u{fffd}</title>", "<title>&lt;/title&gt;</title>"]
        {
            assert!(svg.contains(due), "{due}: {svg}");
        }
    }
}
