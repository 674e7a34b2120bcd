//! An SVG as another program's XML parser reads it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tests::harness::root;

/// Element of an SVG.
#[derive(Debug, Deserialize)]
pub struct Element {
    /// Its name.
    pub tag: String,
    /// Its text.
    pub text: String,
    /// Text of a title within.
    pub hint: String,
    attributes: BTreeMap<String, String>,
}

impl Element {
    /// Attribute of some name.
    ///
    /// # Errors
    /// Without it.
    pub fn attribute(&self, name: &str) -> anyhow::Result<&str> {
        self.attributes.get(name).map(String::as_str).with_context(|| format!("no {name}: {self:?}"))
    }

    /// Attribute of some name, a number.
    ///
    /// # Errors
    /// Without it, and for what is no number.
    pub fn number(&self, name: &str) -> anyhow::Result<f64> {
        Ok(self.attribute(name)?.parse()?)
    }

    /// x, y, width, height.
    ///
    /// # Errors
    /// Without one of them.
    pub fn area(&self) -> anyhow::Result<[f64; 4]> {
        Ok([self.number("x")?, self.number("y")?, self.number("width")?, self.number("height")?])
    }
}

/// All elements of a file, of which every one is drawn or describes what is, and none names another file.
///
/// # Errors
/// For what is no XML, and what does not belong in a picture.
pub fn elements(file: &Path) -> anyhow::Result<Vec<Element>> {
    let python = root().join(".vidi/readers/bin/python");
    ensure!(python.is_file(), "{} is not there: run deploy/setup.sh test", python.display());
    let output = Command::new(python).arg(root().join("tests/tests/system/pictures/elements.py")).arg(file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let elements: Vec<Element> = serde_json::from_slice(&output.stdout)?;
    for element in &elements {
        let known = ["svg", "title", "style", "rect", "text", "image"].contains(&element.tag.as_str());
        let href = element.attributes.get("href").is_none_or(|href| href.starts_with("data:image/jpeg;base64,"));
        ensure!(known && href && !element.attributes.keys().any(|name| name.starts_with("on")), "{element:?}");
    }
    Ok(elements)
}

/// Elements with a tag and a class.
pub fn of<'a>(elements: &'a [Element], tag: &'a str, class: &'a str) -> Vec<&'a Element> {
    let is_it = |e: &&Element| e.tag == tag && e.attributes.get("class").map_or("", String::as_str) == class;
    elements.iter().filter(is_it).collect()
}

/// Time axis of a picture, from its own labels.
#[derive(Debug)]
pub struct Axis {
    zero: f64,
    per_second: f64,
}

impl Axis {
    /// Axis of labels `M:SS` or `S s`.
    ///
    /// # Errors
    /// With fewer than three labels, and where they do not stand evenly.
    pub fn of(elements: &[Element]) -> anyhow::Result<Self> {
        let mut labels: Vec<(f64, f64)> = Vec::new();
        for element in of(elements, "text", "faint") {
            let text = element.text.strip_suffix(" s").unwrap_or(&element.text);
            let (minutes, seconds) = text.rsplit_once(':').unwrap_or(("0", text));
            let is_label = element.attribute("text-anchor")? == "middle";
            if let (true, Ok(minutes), Ok(seconds)) = (is_label, minutes.parse::<f64>(), seconds.parse::<f64>()) {
                labels.push((minutes * 60.0 + seconds, element.number("x")?));
            }
        }
        ensure!(labels.len() >= 3 && labels[0].0 == 0.0, "{labels:?}");
        let last = labels[labels.len() - 1];
        let axis = Axis { zero: labels[0].1, per_second: (last.1 - labels[0].1) / last.0 };
        let even = labels.iter().all(|&(seconds, x)| (axis.x(seconds) - x).abs() < 0.02);
        ensure!(even, "{labels:?}");
        Ok(axis)
    }

    /// Place of a time, pixels.
    pub fn x(&self, seconds: f64) -> f64 {
        self.zero + seconds * self.per_second
    }

    /// Time of a place, seconds.
    pub fn seconds(&self, x: f64) -> f64 {
        (x - self.zero) / self.per_second
    }
}
