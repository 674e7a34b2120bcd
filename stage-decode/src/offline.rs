//! Threads without a network: what runs in them, and in every thread and process that they start, opens no socket.
//!
//! GStreamer has elements that fetch what a file names. Which of them are plugged is decided by a list (`pipeline::parser`);
//! here the system refuses the socket, whatever was plugged. The filter of system calls (seccomp) is a thread's own, and
//! goes on to the threads that it starts: those that talk to the broker do without.

use std::io;
use std::mem::offset_of;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{Builder, JoinHandle};

use protocol::error::{ErrorKind, JobError};

/// Number of the processor's system calls (`AUDIT_ARCH_*` of linux/audit.h).
const ARCHITECTURE: Option<u32> = match () {
    () if cfg!(target_arch = "x86_64") => Some(0xc000_003e),
    () if cfg!(target_arch = "aarch64") => Some(0xc000_00b7),
    () => None,
};
/// From this number on, x86-64 has its system calls once more (x32).
const SECOND_SET: u32 = 0x4000_0000;

/// Takes the network from the calling thread, and from all that it starts from now on, for good. Unix sockets stay.
///
/// # Errors
/// The system's where filters are not allowed; `Unsupported` on processors other than x86-64 and arm64.
pub(crate) fn enter() -> io::Result<()> {
    let mut filter = filter(ARCHITECTURE.ok_or(io::ErrorKind::Unsupported)?);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (on, off): (libc::c_ulong, libc::c_ulong) = (1, 0);
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: both calls change the calling thread alone, and the kernel copies the program before the second returns.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, off, off, off) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) == 0
    };
    if installed { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the calling thread can open a socket of the network.
pub(crate) fn opens_sockets() -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).is_ok()
}

/// Starts a thread without a network; where the system does not allow that, with one. Once at the start of the process
/// [`crate::pipeline::init`] says which.
///
/// # Errors
/// `internal`, if the system starts no thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, JobError> {
    let apart = move || {
        if let Err(error) = enter() {
            tracing::debug!(%error, "a thread that decodes keeps its network");
        }
        work()
    };
    let refused = |e| JobError::new(ErrorKind::Internal, format!("cannot start the thread {name}: {e}"));
    Builder::new().name(name.to_owned()).spawn(apart).map_err(refused)
}

/// Program that refuses `socket` but for Unix sockets, and what would open sockets past it: rings of system calls
/// (`io_uring_setup`), and the system calls of other architectures.
fn filter(architecture: u32) -> [libc::sock_filter; 10] {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, seccomp_data};
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |at: usize| step(BPF_LD | BPF_W | BPF_ABS, at as u32, 0, 0);
    let equal = |value: u32, jt, jf| step(BPF_JMP | BPF_JEQ | BPF_K, value, jt, jf);
    let answer = |value: u32| step(BPF_RET | BPF_K, value, 0, 0);
    [
        load(offset_of!(seccomp_data, arch)),
        equal(architecture, 0, 7),
        load(offset_of!(seccomp_data, nr)),
        step(BPF_JMP | BPF_JGE | BPF_K, SECOND_SET, 5, 0),
        equal(libc::SYS_io_uring_setup as u32, 4, 0),
        equal(libc::SYS_socket as u32, 0, 2),
        // The family; the kernel looks at the lower half, which both processors store first.
        load(offset_of!(seccomp_data, args)),
        equal(libc::AF_UNIX as u32, 0, 1),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;
    use std::thread;

    /// What the thread is refused of opening sockets for IPv4, IPv6 and a ring of system calls.
    fn refusals() -> [Option<io::ErrorKind>; 4] {
        // SAFETY: the address of the parameters is null, which the kernel refuses at least.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
        let ring = (ring == -1).then(io::Error::last_os_error);
        [
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).err(),
            TcpStream::connect((Ipv4Addr::LOCALHOST, 1)).err(),
            TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).err(),
            ring,
        ]
        .map(|error| error.map(|e| e.kind()))
    }

    #[test]
    fn a_thread_without_a_network_opens_no_socket_and_neither_does_one_that_it_starts() {
        let before = refusals();
        assert!(opens_sockets() && !before.contains(&Some(io::ErrorKind::PermissionDenied)), "{before:?}");
        let apart = || {
            let below = thread::spawn(refusals).join().unwrap();
            assert!(!opens_sockets());
            UnixDatagram::unbound().expect("a Unix socket");
            (refusals(), below, Command::new("true").status().unwrap())
        };
        let (here, below, tool) = spawn("apart", apart).unwrap().join().unwrap();
        assert_eq!(here, [Some(io::ErrorKind::PermissionDenied); 4]);
        assert_eq!(below, here);
        assert!(tool.success() && opens_sockets(), "others go on");
    }
}
