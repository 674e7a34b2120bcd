//! Progress of a run on standard error: a bar on a terminal, elsewhere a line for each query.

use indicatif::{ProgressBar, ProgressStyle};
use runtime::output::Remarks;
use runtime::remark;

/// What is shown of a run while it asks.
pub struct Progress {
    /// None where nobody sees it.
    bar: Option<ProgressBar>,
    done: usize,
    of: usize,
}

impl Progress {
    /// Nothing asked yet, of so many queries.
    pub fn new(of: usize) -> Self {
        let bar = (Remarks.on_a_terminal() && of > 0).then(|| {
            let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed} {wide_msg}")
                .expect("a constant template. This is a bug.");
            ProgressBar::new(of as u64).with_style(style)
        });
        Progress { bar, done: 0, of }
    }

    /// One query more is done.
    pub fn step(&mut self, text: &str) {
        self.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.inc(1);
                bar.set_message(text.to_owned());
            }
            None => remark!("{}/{}: {text}", self.done, self.of),
        }
    }

    /// Shows a line that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => remark!("{text}"),
        }
    }

    /// Leaves the bar as it is and the cursor below it.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
