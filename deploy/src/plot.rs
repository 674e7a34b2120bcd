//! Line plots as SVG.

/// Width, height and margin of a plot, pixels.
const SIZE: (f64, f64, f64) = (480.0, 320.0, 48.0);
/// Height of a line of the legend, pixels.
const LEGEND_LINE: f64 = 16.0;

/// Plot of lines over an area that starts at 0, 0.
#[derive(Clone, Copy, Debug)]
pub struct Plot<'a> {
    /// Title, as SVG text.
    pub title: &'a str,
    /// Largest x and y of the area.
    pub most: (f64, f64),
    /// Equal parts at which both axes are labelled; 0 for a plot without axes.
    pub ticks: u32,
    /// Lines, the last one on top.
    pub lines: &'a [Line],
}

/// Line of a plot.
#[derive(Clone, Debug)]
pub struct Line {
    /// Name in the legend, as SVG text; empty for a line that the legend does not show.
    pub name: String,
    /// Colour, as SVG names it.
    pub colour: &'static str,
    /// Points that are joined, x and y.
    pub points: Vec<(f64, f64)>,
    /// Whether each point is marked, with its y above it and its x below the area.
    pub marked: bool,
}

impl Plot<'_> {
    /// The whole file.
    pub fn svg(&self) -> String {
        let (width, height, margin) = SIZE;
        let lines: String = self.lines.iter().map(|line| self.line(line)).collect();
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='sans-serif' font-size='12'>\
             <rect width='100%' height='100%' fill='white'/><text x='{margin}' y='20'>{}</text>{}{lines}{}</svg>",
            self.title,
            self.axes(),
            self.legend()
        )
    }

    /// Place of a value from left to right, pixels.
    fn x(&self, value: f64) -> f64 {
        let (width, _, margin) = SIZE;
        margin + (width - 2.0 * margin) * value / self.most.0
    }

    /// Place of a value from top to bottom, pixels.
    fn y(&self, value: f64) -> f64 {
        let (_, height, margin) = SIZE;
        height - margin - (height - 2.0 * margin) * value / self.most.1
    }

    fn axes(&self) -> String {
        let ((right, top), (left, bottom)) = (self.most, (self.x(0.0), self.y(0.0)));
        let ticks = if self.ticks == 0 { 0..0 } else { 0..self.ticks + 1 };
        ticks
            .map(|tick| {
                let (x, y) =
                    (right * f64::from(tick) / f64::from(self.ticks), top * f64::from(tick) / f64::from(self.ticks));
                format!(
                    "<path d='M{:.1},{bottom:.1} V{:.1} M{left:.1},{:.1} H{:.1}' stroke='#eee' fill='none'/>\
                     <text x='{:.1}' y='{:.1}' text-anchor='middle'>{x:.1}</text>\
                     <text x='{:.1}' y='{:.1}' text-anchor='end'>{y:.1}</text>",
                    self.x(x),
                    self.y(top),
                    self.y(y),
                    self.x(right),
                    self.x(x),
                    bottom + 16.0,
                    left - 6.0,
                    self.y(y) + 4.0,
                )
            })
            .collect()
    }

    fn line(&self, line: &Line) -> String {
        let joined: Vec<String> =
            line.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", self.x(x), self.y(y))).collect();
        let joined = joined.join(" ");
        let colour = line.colour;
        if !line.marked {
            return format!("<polyline points='{joined}' stroke='{colour}' fill='none'/>");
        }
        let marks: String = line.points.iter().map(|&point| self.mark(point)).collect();
        format!("<polyline points='{joined}' stroke='{colour}' fill='none' stroke-width='2'/>{marks}")
    }

    fn mark(&self, (x, y): (f64, f64)) -> String {
        let (_, height, margin) = SIZE;
        let (px, py) = (self.x(x), self.y(y));
        format!(
            "<circle cx='{px:.1}' cy='{py:.1}' r='3'/><text x='{px:.1}' y='{:.1}' text-anchor='middle'>{y:.2}</text>\
             <text x='{px:.1}' y='{:.1}' text-anchor='middle'>{x}</text>",
            py - 8.0,
            height - margin + 16.0,
        )
    }

    fn legend(&self) -> String {
        let named = self.lines.iter().filter(|line| !line.name.is_empty());
        named
            .enumerate()
            .map(|(at, line)| {
                format!(
                    "<text x='{:.1}' y='{:.1}' text-anchor='end' fill='{}'>{}</text>",
                    self.x(self.most.0) - 6.0,
                    self.y(self.most.1) + LEGEND_LINE * (at + 1) as f64,
                    line.colour,
                    line.name
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, marked: bool) -> Line {
        Line { name: name.to_owned(), colour: "#06c", points: vec![(0.0, 0.0), (1.0, 0.5), (2.0, 1.0)], marked }
    }

    #[test]
    fn a_point_lies_where_its_values_are_between_the_margins() {
        let lines = [line("", false)];
        let svg = Plot { title: "t", most: (2.0, 1.0), ticks: 0, lines: &lines }.svg();
        assert!(
            svg.contains("<polyline points='48.0,272.0 240.0,160.0 432.0,48.0' stroke='#06c' fill='none'/>"),
            "{svg}"
        );
        assert!(!svg.contains("<circle") && !svg.contains("<path"), "{svg}");
    }

    #[test]
    fn marks_axes_and_names_are_drawn_where_they_are_asked_for() {
        let lines = [line("IoU", false), line("", true)];
        let svg = Plot { title: "t", most: (2.0, 1.0), ticks: 4, lines: &lines }.svg();
        assert_eq!((svg.matches("<circle").count(), svg.matches("<path").count()), (3, 5), "{svg}");
        assert_eq!(svg.matches(">IoU</text>").count(), 1, "{svg}");
    }
}
