//! A frame: who answers, a line for each instance, and the last errors.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget, Wrap};

use super::view::{Instance, State, View};

/// Columns: what stands at their head, and how wide they are at least. With a space between two they fit 80 columns.
const HEADS: [(&str, u16); 10] = [
    ("instance", 19),
    ("state", 5),
    ("device", 6),
    ("now", 3),
    ("queue", 5),
    ("msg/s", 6),
    ("busy", 5),
    ("used", 6),
    ("peak", 6),
    ("budget", 6),
];
/// Columns whose texts stand at the left.
const LEFT: usize = 3;

/// Draws a frame.
pub fn draw(view: &View, area: Rect, buffer: &mut Buffer) {
    let rows: Vec<Row<'_>> = view.instances().map(row).chain(view.missing().into_iter().map(missing)).collect();
    let errors: Vec<Line<'_>> = view.instances().filter_map(error).collect();
    let errors = if errors.is_empty() { vec![Line::from("no job has failed here")] } else { errors };
    let wrapped = Paragraph::new(errors).wrap(Wrap { trim: true });
    // The table first; what is left is the errors', two lines at least.
    let table_lines = u16::try_from(rows.len() + 1).unwrap_or(u16::MAX).min(area.height.saturating_sub(5));
    let parts = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(table_lines),
        Constraint::Length(1),
        Constraint::Min(0),
    ]);
    let [head, table, title, errors] = parts.areas(area);
    heading(view).render(head, buffer);
    let hidden = (rows.len() + 1).saturating_sub(usize::from(table.height));
    let heads = HEADS.iter().enumerate().map(|(at, (name, width))| cell(at, *width, (*name).to_owned(), Style::new()));
    Table::new(rows, HEADS.map(|(_, width)| Constraint::Length(width)))
        .header(Row::new(heads).style(Style::new().add_modifier(Modifier::REVERSED)))
        .column_spacing(1)
        .render(table, buffer);
    let note = if hidden > 0 { format!("{hidden} more: make the terminal higher. ") } else { String::new() };
    Line::from(vec![Span::raw(note), Span::styled("Last errors", Modifier::BOLD)]).render(title, buffer);
    wrapped.render(errors, buffer);
}

fn heading(view: &View) -> Paragraph<'_> {
    let (broker, prefix) = view.pipeline();
    let (waiting, running) = view.jobs();
    let first = Line::from(vec![
        Span::styled("vidi top", Modifier::BOLD),
        Span::raw(format!("  jobs: {running} running, {waiting} waiting  (q ends it)")),
    ]);
    let second = match view.trouble() {
        Some(trouble) => Line::styled(format!("the broker does not answer: {trouble}"), Color::Red),
        None => Line::from(format!("{broker}  {prefix}")),
    };
    Paragraph::new(vec![first, second])
}

fn cell(at: usize, width: u16, text: String, style: Style) -> Cell<'static> {
    let width = usize::from(width);
    let text = if at < LEFT { text } else { format!("{text:>width$}") };
    Cell::from(Span::styled(text, style))
}

fn row(instance: &Instance) -> Row<'static> {
    let status = &instance.status;
    let of = |figure: Option<f64>, shown: fn(f64) -> String| figure.map_or_else(|| "-".to_owned(), shown);
    let budget = if status.budget_bytes == 0 { "none".to_owned() } else { bytes(status.budget_bytes) };
    let texts = [
        status.instance.clone(),
        instance.state.as_str().to_owned(),
        status.device.clone(),
        status.in_flight.to_string(),
        status.queue_depth.to_string(),
        of(instance.rate, |rate| format!("{rate:.1}")),
        of(instance.busy, |busy| format!("{:.0}%", busy * 100.0)),
        bytes(status.used_bytes),
        bytes(status.peak_bytes),
        budget,
    ];
    let state = match instance.state {
        State::Busy => Style::new().fg(Color::Green),
        State::Idle => Style::new(),
        State::Gone => Style::new().fg(Color::Red),
    };
    let over = Style::new().fg(Color::Yellow);
    let near = status.budget_bytes > 0 && status.used_bytes / 9 >= status.budget_bytes / 10;
    let cells = texts.into_iter().zip(HEADS).enumerate().map(|(at, (text, (name, width)))| match name {
        "state" => cell(at, width, text, state),
        "used" if near => cell(at, width, text, over),
        _ => cell(at, width, text, Style::new()),
    });
    Row::new(cells)
}

fn missing(stage: protocol::error::StageName) -> Row<'static> {
    Row::new([stage.to_string(), "none".to_owned()]).style(Style::new().fg(Color::Red))
}

fn error(instance: &Instance) -> Option<Line<'_>> {
    let error = instance.status.last_error.as_str();
    let name = Span::styled(format!("{}: ", instance.status.instance), Modifier::BOLD);
    // Whoever wrote it may have broken lines; each error is one here.
    let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
    (!error.is_empty()).then(|| Line::from(vec![name, Span::raw(error)]))
}

/// Bytes in at most six columns: `512M`, `12.3G`.
fn bytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match mib {
        m if m < 999.5 => format!("{m:.0}M"),
        m if m < 999.5 * 1024.0 => format!("{:.1}G", m / 1024.0),
        m => format!("{:.1}T", m / 1024.0 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use protocol::error::StageName;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::view::tests::status;
    use super::*;

    fn view() -> View {
        let mut view = View::of("nats://127.0.0.1:4222", "vidi.v1");
        let mut all: Vec<_> = StageName::ALL.map(|stage| status(stage, &format!("{stage}-1234567-abcd"))).into();
        all[1].device = "cuda:0".to_owned();
        (all[1].in_flight, all[1].queue_depth, all[1].budget_bytes, all[1].used_bytes) = (2, 17, 6 << 30, 12 << 29);
        all[4].last_error = "does_not_fit: 60,000 tokens\nneed 20.6 GB".to_owned();
        (all[4].in_flight, all[4].queue_depth) = (1, 3);
        let start = Instant::now();
        view.note(all.clone(), start);
        (all[1].processed, all[1].busy_us) = (25, 1_900_000);
        view.note(all, start + Duration::from_secs(2));
        view
    }

    fn drawn(view: &View, columns: u16, lines: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(view, frame.area(), frame.buffer_mut())).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_terminal_of_80_by_24_shows_every_figure_of_every_stage_and_the_last_error() {
        let text = drawn(&view(), 80, 24);
        assert!(text.contains("jobs: 1 running, 3 waiting"), "{text}");
        assert!(text.contains("nats://127.0.0.1:4222  vidi.v1"), "{text}");
        let vision = text.lines().find(|line| line.contains("vision-1234567-abcd")).unwrap();
        let shown: Vec<&str> = vision.trim_matches('"').split_whitespace().collect();
        let expected = ["vision-1234567-abcd", "busy", "cuda:0", "2", "17", "12.5", "95%", "6.0G", "128M", "6.0G"];
        assert_eq!(shown, expected, "{text}");
        for stage in StageName::ALL {
            assert!(text.contains(&format!("{stage}-1234567-abcd")), "{stage}: {text}");
        }
        assert!(text.contains("llm-1234567-abcd: does_not_fit: 60,000 tokens need 20.6 GB"), "{text}");
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on_and_what_is_hidden_is_counted() {
        let view = view();
        for (columns, lines) in [(1, 1), (3, 2), (20, 5), (80, 6), (79, 9), (300, 100)] {
            drawn(&view, columns, lines);
        }
        let text = drawn(&view, 80, 9);
        assert!(text.contains("2 more: make the terminal higher"), "{text}");
    }

    #[test]
    fn stages_that_are_not_there_and_a_broker_that_does_not_answer_are_told() {
        let mut view = View::of("nats://127.0.0.1:4222", "vidi.v1");
        view.note(Vec::new(), Instant::now());
        let text = drawn(&view, 80, 24);
        for stage in StageName::ALL {
            let line = text.lines().find(|line| line.contains(stage.as_str())).unwrap();
            assert!(line.contains("none"), "{text}");
        }
        assert!(text.contains("no job has failed here"), "{text}");
        view.note_trouble(&anyhow::anyhow!("timed out"));
        assert!(drawn(&view, 80, 24).contains("the broker does not answer: timed out"));
    }

    #[test]
    fn bytes_take_six_columns_whatever_they_are() {
        let shown = [0, 512 << 20, (999 << 20) + (1 << 19), 12 << 30, 5 << 40].map(bytes);
        assert_eq!(shown, ["0M", "512M", "1.0G", "12.0G", "5.0T"]);
    }
}
