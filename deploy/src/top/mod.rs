//! `vidi top`: the stages that run, on the whole terminal.
//!
//! In reading order: [`view`] (what is known of the instances, from [`status`](crate::client::statuses)), [`draw`](mod@draw) (a frame
//! of it), this file (the terminal).

pub mod draw;
pub mod view;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use runtime::bus::Bus;
use runtime::run::Shutdown;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::client;
use view::View;

/// Interval at which the instances are asked.
const EVERY: Duration = Duration::from_secs(1);
/// Interval at which the thread that reads keys looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Width of a frame that is printed as text, in columns.
const COLUMNS: u16 = 100;

/// A frame as text, once rates are known.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn once(bus: &Bus) -> anyhow::Result<String> {
    let mut view = View::new(bus);
    view.note(client::statuses(bus).await?, Instant::now());
    tokio::time::sleep(EVERY).await;
    view.note(client::statuses(bus).await?, Instant::now());
    Ok(text(&view, COLUMNS, view.lines()))
}

/// A frame of a size as lines without trailing spaces.
pub fn text(view: &View, columns: u16, lines: u16) -> String {
    let area = Rect::new(0, 0, columns, lines);
    let mut buffer = Buffer::empty(area);
    draw::draw(view, area, &mut buffer);
    let line = |y| {
        let cells: String = (0..columns).map(|x| buffer[(x, y)].symbol()).collect();
        cells.trim_end().to_owned()
    };
    (0..lines).map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

/// Draws on the terminal until q, Esc, Ctrl-C or `shutdown`; the terminal is then as it was, after a panic too.
///
/// # Errors
/// The terminal's.
pub async fn run(bus: &Bus, shutdown: Shutdown) -> io::Result<()> {
    // It makes a panic restore the terminal before it is told.
    let mut terminal = ratatui::try_init()?;
    let keys = Keys::read();
    let shown = show(&mut terminal, bus, keys, shutdown).await;
    // What was wrong comes first; a terminal that cannot be restored is gone.
    shown.and(ratatui::try_restore())
}

/// Thread that reads the keyboard, which cannot be waited for otherwise; it ends with this.
struct Keys {
    events: UnboundedReceiver<io::Result<Event>>,
    wanted: Arc<AtomicBool>,
}

impl Keys {
    fn read() -> Self {
        let (say, events) = unbounded_channel();
        let wanted = Arc::new(AtomicBool::new(true));
        let is_wanted = wanted.clone();
        std::thread::spawn(move || {
            while is_wanted.load(Ordering::Relaxed) {
                let event = match event::poll(LOOK_EVERY) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let is_end = event.is_err();
                if say.send(event).is_err() || is_end {
                    return;
                }
            }
        });
        Keys { events, wanted }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Relaxed);
    }
}

/// Shows what the instances say until it is enough.
async fn show(terminal: &mut DefaultTerminal, bus: &Bus, mut keys: Keys, mut shutdown: Shutdown) -> io::Result<()> {
    let mut view = View::new(bus);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| {
            let area = frame.area();
            draw::draw(&view, area, frame.buffer_mut());
        })?;
        tokio::select! {
            _ = ticks.tick() => match client::statuses(bus).await {
                Ok(statuses) => view.note(statuses, Instant::now()),
                Err(error) => view.note_trouble(&error),
            },
            event = keys.events.recv() => match event {
                Some(Ok(Event::Key(key))) if is_end(&key) => return Ok(()),
                // Another size is drawn above.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = shutdown.wait_for(|&s| s) => return Ok(()),
        }
    }
}

/// Whether a key ends it.
fn is_end(key: &KeyEvent) -> bool {
    let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (ctrl_c || matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc))
}
