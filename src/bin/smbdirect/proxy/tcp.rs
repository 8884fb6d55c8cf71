//! The TCP side of one proxied connection: frames in, frames out, never more than a bound held.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use smbdirect::mem::{recv_vectored, send_vectored, RecvParts, SendParts};
use smbdirect::peer::{Endpoint, Pdu, SendBuffer};

use super::framing::{self, Frame, HEADER_LEN};

/// A client's socket, with what was read of a frame and what is to be written.
pub(super) struct Tcp {
    stream: TcpStream,
    /// Bytes read and not yet taken: `[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// A message that is being received, and how much of it is there.
    partial: Option<(SendBuffer, usize)>,
    is_first: bool,
    out: VecDeque<([u8; HEADER_LEN], Pdu)>,
    /// Bytes of the first frame of `out` that have left.
    out_done: usize,
    /// Bytes of `out`.
    out_bytes: usize,
    /// The client has closed its direction.
    pub(super) is_at_end: bool,
}

/// What a read brought.
pub(super) enum Input {
    /// A whole message.
    Message(SendBuffer),
    /// Nothing more for now.
    Nothing,
}

impl Tcp {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; READ_SIZE],
            start: 0,
            end: 0,
            partial: None,
            is_first: true,
            out: VecDeque::new(),
            out_done: 0,
            out_bytes: 0,
            is_at_end: false,
        })
    }

    /// The next message. Reads at most once from the socket, so that one busy client does not
    /// keep the others waiting; `may_read` is spent by that.
    ///
    /// # Errors
    /// What ends the connection, as text. `max` is the longest message that may be passed on.
    pub(super) fn next(
        &mut self,
        endpoint: &mut Endpoint,
        max: usize,
        may_read: &mut bool,
    ) -> Result<Input, String> {
        loop {
            if let Some(buffer) = self.take_buffered(endpoint, max)? {
                return Ok(Input::Message(buffer));
            }
            if !std::mem::take(may_read) || self.is_at_end {
                return Ok(Input::Nothing);
            }
            if !self.read()? {
                return Ok(Input::Nothing);
            }
        }
    }

    /// Takes what the buffer holds of a message; gives the message when it is complete.
    fn take_buffered(
        &mut self,
        endpoint: &mut Endpoint,
        max: usize,
    ) -> Result<Option<SendBuffer>, String> {
        loop {
            let Some(held) = self.buffer.get(self.start..self.end) else {
                return Ok(None);
            };
            if let Some((target, done)) = &mut self.partial {
                let memory = target.memory();
                let take = held.len().min(memory.len() - *done);
                memory
                    .write(*done, &held[..take])
                    .map_err(|error| error.to_string())?;
                *done += take;
                self.start += take;
                if *done < memory.len() {
                    return Ok(None);
                }
                if std::mem::take(&mut self.is_first) {
                    let mut magic = [0; 4];
                    let len = memory.len().min(magic.len());
                    memory
                        .read(0, &mut magic[..len])
                        .map_err(|error| error.to_string())?;
                    framing::check_first(magic).map_err(|error| error.to_string())?;
                }
                return Ok(self.partial.take().map(|(buffer, _)| buffer));
            }
            let Some((header, _)) = held.split_first_chunk::<HEADER_LEN>() else {
                return Ok(None);
            };
            self.start += HEADER_LEN;
            match framing::parse(*header).map_err(|error| error.to_string())? {
                Frame::KeepAlive => {}
                Frame::Message(length) if length > max => {
                    return Err(format!(
                        "the client's message has {length} bytes, the SMB Direct peer takes \
                         {max}; raise the peer's MaxFragmentedSize, or lower what the client \
                         writes at once"
                    ));
                }
                Frame::Message(length) => {
                    let target = endpoint
                        .send_buffer_of(length)
                        .map_err(|error| format!("no memory for {length} bytes: {error}"))?;
                    self.partial = Some((target, 0));
                }
            }
        }
    }

    /// Reads once: the rest of a message straight to its place, what follows into the buffer.
    fn read(&mut self) -> Result<bool, String> {
        // Whatever is left is less than a header or was just taken.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let mut parts = RecvParts::new();
        let mut direct = 0;
        if let Some((target, done)) = &self.partial {
            direct = target.memory().len() - done;
            parts
                .push_mem(target.memory(), *done, direct)
                .map_err(|error| error.to_string())?;
        }
        parts.push(&mut self.buffer[self.end..]);
        match recv_vectored(&self.stream, &mut parts) {
            Ok(0) => {
                self.is_at_end = true;
                if self.partial.is_some() || self.end > 0 {
                    return Err("the client went away in the middle of a message".into());
                }
                Ok(false)
            }
            Ok(count) => {
                if let Some((_, done)) = &mut self.partial {
                    *done += count.min(direct);
                }
                self.end += count.saturating_sub(direct);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(format!("reading from the client: {error}")),
        }
    }

    /// Queues a message for the client.
    pub(super) fn queue(&mut self, pdu: Pdu) -> Result<(), String> {
        let header = framing::header(pdu.len())
            .ok_or_else(|| format!("message of {} bytes, TCP frames end at 16 MiB", pdu.len()))?;
        self.out_bytes += HEADER_LEN + pdu.len();
        self.out.push_back((header, pdu));
        Ok(())
    }

    /// Writes as much as the socket takes.
    pub(super) fn write(&mut self, endpoint: &mut Endpoint) -> Result<(), String> {
        while !self.out.is_empty() {
            let mut parts = SendParts::new();
            let mut skip = self.out_done;
            for (header, pdu) in self.out.iter().take(WRITE_FRAMES) {
                parts.push(header.get(skip..).unwrap_or_default());
                parts.push(
                    pdu.get(skip.saturating_sub(HEADER_LEN)..)
                        .unwrap_or_default(),
                );
                skip = 0;
            }
            let wanted = parts.bytes();
            let count = match send_vectored(&self.stream, &parts, false) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("writing to the client: {error}")),
            };
            self.out_bytes -= count;
            let mut done = self.out_done + count;
            while let Some((_, pdu)) = self.out.front() {
                let frame = HEADER_LEN + pdu.len();
                if done < frame {
                    break;
                }
                done -= frame;
                if let Some((_, pdu)) = self.out.pop_front() {
                    endpoint.recycle(pdu);
                }
            }
            self.out_done = done;
            if count < wanted {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Bytes that wait to be written.
    pub(super) fn queued(&self) -> usize {
        self.out_bytes
    }
}

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Enough for the small messages of a busy client in one read.
const READ_SIZE: usize = 64 << 10;
/// Frames per write.
const WRITE_FRAMES: usize = 64;
