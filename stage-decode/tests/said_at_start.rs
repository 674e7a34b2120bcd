//! A system that allows no filter of system calls: the stage starts all the same, and says that its threads keep the network.

use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt;
use std::process::Command;

use stage_decode::{DecodeOptions, DecodeStage};

/// Variable that is set in a process which only starts a stage.
const STARTS: &str = "STARTS_A_STAGE";

/// Refuses the calling process any further filter by `prctl`.
fn refuse_filters() -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, seccomp_data};
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        step(BPF_LD | BPF_W | BPF_ABS, offset_of!(seccomp_data, nr) as u32, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, libc::SYS_prctl as u32, 0, 3),
        step(BPF_LD | BPF_W | BPF_ABS, offset_of!(seccomp_data, args) as u32, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, libc::PR_SET_SECCOMP as u32, 0, 1),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (on, off): (libc::c_ulong, libc::c_ulong) = (1, 0);
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the kernel copies the program before the second call returns.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, off, off, off) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) == 0
    };
    if refused { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn where_no_filter_is_allowed_the_stage_says_so_at_start_and_starts() {
    if std::env::var_os(STARTS).is_some() {
        #[allow(clippy::disallowed_methods, reason = "the test reads what its own process says there")]
        tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
        DecodeStage::new(DecodeOptions::new([std::env::temp_dir()])).unwrap();
        return;
    }
    let said = |allowed: bool| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--nocapture").env(STARTS, "1");
        if !allowed {
            // SAFETY: between fork and exec only the two system calls are made.
            unsafe { command.pre_exec(refuse_filters) };
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let warning = said(false);
    assert!(warning.contains("keep the network") && warning.contains("Operation not permitted"), "{warning}");
    assert!(!said(true).contains("network"));
}
