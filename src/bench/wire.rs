//! As much of HTTP/1.1 as the load needs, both directions: requests and responses with `Content-Length` on connections that
//! stay open (RFC 9112, sections 6 and 9).
//!
//! Refuses chunked bodies, and is no client for anything but the deployment on this machine. Written by hand so that the load
//! generator, which shares the machine with what it measures, takes little of it.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than any head of ours or of an HTTP library without cookies.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// `/metrics` of a deployment with many bots is the longest body read here.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// What was read and not yet given out.
    buffer: Vec<u8>,
}

/// A request or a response.
#[derive(Debug)]
pub(super) struct Message {
    /// The request line or status line.
    pub(super) first_line: String,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// The status code of a response.
    pub(super) fn status(&self) -> Option<u16> {
        self.first_line.split(' ').nth(1)?.parse().ok()
    }

    /// The path of a request.
    pub(super) fn path(&self) -> Option<&str> {
        self.first_line.split(' ').nth(1)
    }
}

impl Wire {
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::accepted(TcpStream::connect(address).await?)
    }

    pub(super) fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4_096) })
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends a request and waits for its response.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> io::Result<Message> {
        self.send(request).await?;
        self.receive().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The next message; `None` when the other side has closed the connection between two.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut searched = 0;
        let head_end = loop {
            if let Some(found) = find(&self.buffer, searched) {
                break found;
            }
            searched = self.buffer.len().saturating_sub(3);
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(malformed("the head is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        let head = std::str::from_utf8(&self.buffer[..head_end]).map_err(|_| malformed("the head is not text"))?;
        let (first_line, fields) = head.split_once("\r\n").unwrap_or((head, ""));
        let first_line = first_line.to_owned();
        let length = content_length(fields)?;
        let body_start = head_end + 4;
        while self.buffer.len() < body_start + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.buffer.split_off(body_start + length);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.drain(..body_start);
        Ok(Some(Message { first_line, body: message }))
    }
}

/// Where the blank line that ends a head begins.
fn find(buffer: &[u8], from: usize) -> Option<usize> {
    buffer.get(from..)?.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| from + at)
}

fn content_length(fields: &str) -> io::Result<usize> {
    let mut length = 0;
    for line in fields.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| malformed("the length is no number"))?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(malformed("the body is chunked"));
        }
    }
    if length > BODY_BYTES_MAX { Err(malformed("the body is too long")) } else { Ok(length) }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut sender = Wire::connect(listener.local_addr()?).await?;
        let mut receiver = Wire::accepted(listener.accept().await?.0)?;
        let bytes = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n";
        let sending = async {
            for byte in bytes {
                sender.send(&[*byte]).await?;
                tokio::task::yield_now().await;
            }
            drop(sender);
            Ok::<_, io::Error>(())
        };
        let receiving = async {
            let request = receiver.receive().await?;
            let response = receiver.receive().await?;
            Ok::<_, io::Error>((request, response, receiver.receive().await?))
        };
        let (sent, received) = tokio::join!(sending, receiving);
        sent?;
        let (request, response, end) = received?;
        assert_eq!(request.as_ref().and_then(Message::path), Some("/a"));
        assert_eq!(request.map(|request| request.body), Some(b"abc".to_vec()));
        assert_eq!(response.and_then(|response| response.status()), Some(200));
        assert!(end.is_none());
        Ok(())
    }

    #[test]
    fn what_is_not_spoken_here_is_an_error() {
        for fields in ["Transfer-Encoding: chunked", "Content-Length: x", "content-length: 99999999999"] {
            assert!(content_length(fields).is_err(), "{fields}");
        }
        assert_eq!(content_length("Host: a\r\nCONTENT-LENGTH: 12").ok(), Some(12));
    }
}
