//! A share that answers slowly, or not at all: the system holds up the reads (`pread64`) of files by their names, with a filter
//! of system calls that asks this process first (seccomp_unotify(2)).

use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How reads of a file are held up.
#[derive(Clone, Copy)]
pub enum Hold {
    /// Each takes so long.
    Each(Duration),
    /// Those of anything from the first position on, before the second, do not come back.
    Within(u64, u64),
}

#[derive(Clone, Default)]
struct Holds(Arc<Mutex<HashMap<PathBuf, Hold>>>);

/// Holds up all reads of a file from now on, in every thread of this process.
pub fn hold(path: &Path, hold: Hold) {
    static HOLDS: OnceLock<Holds> = OnceLock::new();
    let holds = HOLDS.get_or_init(|| {
        let holds = Holds::default();
        let (listener, answered) = (install(), holds.clone());
        std::thread::spawn(move || answer(&listener, &answered));
        holds
    });
    holds.0.lock().unwrap().insert(path.to_owned(), hold);
}

/// Installs the filter in all threads. Each `pread64` waits for an answer to the descriptor from then on.
fn install() -> OwnedFd {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut filter = [
        step(BPF_LD | BPF_W | BPF_ABS, std::mem::offset_of!(libc::seccomp_data, nr) as u32, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, libc::SYS_pread64 as u32, 1),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        | libc::SECCOMP_FILTER_FLAG_TSYNC
        | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    let (on, off): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: the kernel copies the program before the call returns.
    let listener = unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, off, off, off), 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    assert!(listener >= 0, "a filter that asks: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(listener as i32) }
}

/// Answers the system for every read: it goes on, at once or later.
fn answer(listener: &OwnedFd, holds: &Holds) {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    let descriptor = listener.as_raw_fd();
    loop {
        // SAFETY: both structures are plain numbers, and the kernel wants the first zeroed.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one that this request fills in.
        if unsafe { libc::ioctl(descriptor, RECEIVE, &raw mut asked) } != 0 {
            continue;
        }
        let path = std::fs::read_link(format!("/proc/{}/fd/{}", asked.pid, asked.data.args[0])).unwrap_or_default();
        let hold = holds.0.lock().unwrap().get(&path).copied();
        match hold {
            Some(Hold::Within(from, to))
                if asked.data.args[3] < to && asked.data.args[3] + asked.data.args[2] > from => {}
            Some(Hold::Each(time)) => {
                let id = asked.id;
                std::thread::spawn(move || {
                    std::thread::sleep(time);
                    go_on(descriptor, id);
                });
            }
            _ => go_on(descriptor, asked.id),
        }
    }
}

fn go_on(descriptor: i32, id: u64) {
    const SEND: libc::c_ulong = 0xc018_2101;
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
    // SAFETY: the structure is the one that this request reads. The thread that asked may have gone meanwhile.
    unsafe { libc::ioctl(descriptor, SEND, &raw mut answer) };
}
