//! A connection that is encrypted or not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Not encrypted.
    Plain(TcpStream),
    /// After a handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The half of a connection that reads.
#[derive(Debug)]
pub enum Reader {
    /// Not encrypted.
    Plain(OwnedReadHalf),
    /// Encrypted: shares the state of the connection with the other half.
    Tls(ReadHalf<Box<TlsStream<TcpStream>>>),
}

/// The half of a connection that writes.
#[derive(Debug)]
pub enum Writer {
    /// Not encrypted.
    Plain(OwnedWriteHalf),
    /// Encrypted: shares the state of the connection with the other half.
    Tls(WriteHalf<Box<TlsStream<TcpStream>>>),
}

impl Stream {
    /// The host name that whoever connected asked for.
    pub fn server_name(&self) -> Option<&str> {
        let Stream::Tls(stream) = self else { return None };
        let TlsStream::Server(stream) = stream.as_ref() else { return None };
        stream.get_ref().1.server_name()
    }

    /// The certificate that the other end showed. Whoever called was asked for one only if it could be checked.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        let Stream::Tls(stream) = self else { return None };
        let certificates = stream.get_ref().1.peer_certificates()?;
        certificates.first().map(AsRef::as_ref)
    }

    /// Two halves that may be used at the same time.
    pub fn into_split(self) -> (Reader, Writer) {
        match self {
            Stream::Plain(stream) => {
                let (reader, writer) = stream.into_split();
                (Reader::Plain(reader), Writer::Plain(writer))
            }
            Stream::Tls(stream) => {
                let (reader, writer) = tokio::io::split(stream);
                (Reader::Tls(reader), Writer::Tls(writer))
            }
        }
    }
}

macro_rules! reads {
    ($type:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                task: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $type::Plain(inner) => Pin::new(inner).poll_read(task, buffer),
                    $type::Tls(inner) => Pin::new(inner).poll_read(task, buffer),
                }
            }
        }
    };
}

macro_rules! writes {
    ($type:ident) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                task: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $type::Plain(inner) => Pin::new(inner).poll_write(task, bytes),
                    $type::Tls(inner) => Pin::new(inner).poll_write(task, bytes),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $type::Plain(inner) => Pin::new(inner).poll_flush(task),
                    $type::Tls(inner) => Pin::new(inner).poll_flush(task),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $type::Plain(inner) => Pin::new(inner).poll_shutdown(task),
                    $type::Tls(inner) => Pin::new(inner).poll_shutdown(task),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $type::Plain(inner) => inner.is_write_vectored(),
                    $type::Tls(inner) => inner.is_write_vectored(),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                task: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $type::Plain(inner) => Pin::new(inner).poll_write_vectored(task, slices),
                    $type::Tls(inner) => Pin::new(inner).poll_write_vectored(task, slices),
                }
            }
        }
    };
}

reads!(Stream);
writes!(Stream);
reads!(Reader);
writes!(Writer);
