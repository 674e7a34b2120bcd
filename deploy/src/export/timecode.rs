//! SMPTE time codes: labels of frames, non-drop and drop-frame.
//!
//! Rule of drop-frame codes: SMPTE ST 12-1. No frame is dropped; of each minute but every tenth the first two labels are left
//! out (four at 59.94), so that labels keep up with a clock.

use std::fmt;
use std::str::FromStr;

use super::rate::Rate;

/// Time code as it is written: hours, minutes, seconds, frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    hours: u32,
    minutes: u32,
    seconds: u32,
    frames: u32,
    /// Whether it is written as a drop-frame code, with another sign than a colon before the frames.
    pub is_drop: bool,
}

impl Code {
    /// Code of a whole hour.
    pub fn hour(hours: u32) -> Self {
        Code { hours, minutes: 0, seconds: 0, frames: 0, is_drop: false }
    }
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time code: write HH:MM:SS:FF, or HH:MM:SS;FF for drop-frame");
        let (clock, frames) = text.trim().rsplit_once([':', ';', '.', ',']).ok_or_else(wrong)?;
        let is_drop = text.trim().as_bytes().get(clock.len()) != Some(&b':');
        let number = |digits: &str| {
            let only_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u32>().ok().filter(|_| only_digits).ok_or_else(wrong)
        };
        let fields: Vec<&str> = clock.split([':', ';']).collect();
        let [hours, minutes, seconds] = fields[..] else { return Err(wrong()) };
        let (hours, minutes, seconds) = (number(hours)?, number(minutes)?, number(seconds)?);
        if hours > 23 || minutes > 59 || seconds > 59 {
            return Err(wrong());
        }
        Ok(Code { hours, minutes, seconds, frames: number(frames)?, is_drop })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Code { hours, minutes, seconds, frames, is_drop } = self;
        let sign = if *is_drop { ';' } else { ':' };
        write!(f, "{hours:02}:{minutes:02}:{seconds:02}{sign}{frames:02}")
    }
}

/// Labels of frames at some rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timecodes {
    base: u32,
    /// Labels left out in a minute; 0 for non-drop codes.
    dropped: u32,
}

impl Timecodes {
    /// Labels at a rate: non-drop, or drop-frame.
    ///
    /// # Errors
    /// For drop-frame codes of a rate that has none.
    pub fn new(rate: Rate, drop: bool) -> Result<Self, String> {
        let dropped = match (drop, rate.dropped()) {
            (false, _) => 0,
            (true, Some(dropped)) => dropped,
            (true, None) => {
                return Err(format!(
                    "no drop-frame time codes at {rate} frames a second: there are such at 30000/1001 and 60000/1001 alone; \
                     leave out --drop-frame"
                ));
            }
        };
        Ok(Timecodes { base: rate.base(), dropped })
    }

    /// Whether they are drop-frame.
    pub fn is_drop(self) -> bool {
        self.dropped > 0
    }

    /// Label of a frame; after 24 hours they begin anew.
    pub fn label(self, frame: u64) -> String {
        let (base, dropped) = (u64::from(self.base), u64::from(self.dropped));
        let per_minute = base * 60 - dropped;
        let per_ten = base * 600 - 9 * dropped;
        let frame = frame % (per_ten * 6 * 24);
        let minutes = frame % per_ten;
        // Of each ten minutes the first one leaves nothing out.
        let skipped = 9 * (frame / per_ten) + minutes.saturating_sub(dropped) / per_minute;
        let number = frame + dropped * skipped;
        let field = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let code = Code {
            hours: field(number / (base * 3600)),
            minutes: field(number / (base * 60) % 60),
            seconds: field(number / base % 60),
            frames: field(number % base),
            is_drop: self.is_drop(),
        };
        code.to_string()
    }

    /// Frame of a label, whichever sign stands before its frames.
    ///
    /// # Errors
    /// For a label that no frame has.
    pub fn frame(self, code: Code) -> Result<u64, String> {
        let Code { hours, minutes, seconds, frames, .. } = code;
        if frames >= self.base {
            return Err(format!("no frame has the time code {code}: a second has {} frames", self.base));
        }
        if seconds == 0 && frames < self.dropped && !minutes.is_multiple_of(10) {
            return Err(format!("no frame has the time code {code}: drop-frame time codes leave it out"));
        }
        let minutes = u64::from(hours * 60 + minutes);
        let number = (minutes * 60 + u64::from(seconds)) * u64::from(self.base) + u64::from(frames);
        Ok(number - u64::from(self.dropped) * (minutes - minutes / 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(average: f64, drop: bool) -> Timecodes {
        Timecodes::new(Rate::of(average, 10.0).unwrap(), drop).unwrap()
    }

    /// Minutes at the start and at the end of a day of which every frame is looked at.
    const MINUTES: [u64; 2] = [61, 11];

    #[test]
    fn every_frame_has_a_label_of_its_own_that_leads_back_to_it() {
        for (average, drop, day) in [
            (25.0, false, 2_160_000),
            (24_000.0 / 1001.0, false, 2_073_600),
            (30_000.0 / 1001.0, false, 2_592_000),
            (30_000.0 / 1001.0, true, 2_589_408),
            (60_000.0 / 1001.0, false, 5_184_000),
            (60_000.0 / 1001.0, true, 5_178_816),
        ] {
            let codes = codes(average, drop);
            let [first, last] = MINUTES.map(|minutes| minutes * day / (24 * 60));
            for frames in [0..first, day - last..day] {
                let mut before = String::new();
                for frame in frames {
                    let label = codes.label(frame);
                    // Of one width, labels sort as their frames do.
                    assert!(label > before && label.contains(';') == drop, "{frame}: {label} after {before}");
                    assert_eq!(codes.frame(label.parse().unwrap()), Ok(frame), "{label} at {average}");
                    before = label;
                }
            }
            assert_eq!(codes.label(day), codes.label(0), "a day at {average}");
            assert!(codes.label(day - 1).starts_with("23:59:59"), "{}", codes.label(day - 1));
        }
    }

    #[test]
    fn drop_frame_codes_leave_out_the_first_labels_of_a_minute_but_not_of_every_tenth() {
        let (ntsc, twice) = (codes(30_000.0 / 1001.0, true), codes(60_000.0 / 1001.0, true));
        let shown = |codes: Timecodes, frames: [u64; 4]| frames.map(|frame| codes.label(frame));
        assert_eq!(
            shown(ntsc, [1799, 1800, 17_981, 17_982]),
            ["00:00:59;29", "00:01:00;02", "00:09:59;29", "00:10:00;00"]
        );
        assert_eq!(
            shown(twice, [3599, 3600, 35_963, 35_964]),
            ["00:00:59;59", "00:01:00;04", "00:09:59;59", "00:10:00;00"]
        );
        // An hour of labels is an hour of the clock, but for 3.6 ms.
        assert_eq!([ntsc.label(107_892), twice.label(215_784)], ["01:00:00;00"; 2]);
        assert_eq!(ntsc.frame(Code::hour(1)), Ok(107_892));
        for label in ["00:01:00;00", "00:01:00;01", "23:59:00;01"] {
            assert!(ntsc.frame(label.parse().unwrap()).unwrap_err().contains("leave it out"), "{label}");
        }
    }

    #[test]
    fn what_is_no_time_code_is_refused() {
        for text in
            ["", "1:2:3", "00:00:60:00", "00:60:00:00", "24:00:00:00", "a:0:0:0", "0:0:0:-1", "0:0:0:0:0", "+1:0:0:0"]
        {
            assert!(text.parse::<Code>().is_err(), "{text:?}");
        }
        assert_eq!("1:2:3;4".parse::<Code>().unwrap().to_string(), "01:02:03;04");
        assert_eq!("10:00:00:00".parse::<Code>(), Ok(Code::hour(10)));
        assert!(codes(25.0, false).frame("00:00:00:25".parse().unwrap()).is_err());
        assert!(Timecodes::new(Rate::of(25.0, 10.0).unwrap(), true).unwrap_err().contains("30000/1001"));
    }
}
