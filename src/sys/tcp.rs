//! TCP socket options that rustix has no name for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The most bytes that TCP puts into one segment of this connection (TCP_MAXSEG).
pub fn max_segment_bytes(fd: impl AsFd) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    let mut len = std::mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` are valid for the call, and `len` names the size of `value`.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(value).map_err(io::Error::other)
}

/// Sets how many bytes have to be there before the socket counts as readable (`SO_RCVLOWAT`); the
/// end of the stream and errors make it readable anyway.
pub fn set_receive_threshold(fd: impl AsFd, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for the call, and the length is its size.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&value).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_a_segment_size() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!((500..=65_535).contains(&max_segment_bytes(&stream).unwrap()));
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(max_segment_bytes(&unix).is_err());
    }
}
