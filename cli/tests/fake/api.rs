//! The API server: fixed answers, and port-forwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

type Answers = Arc<Mutex<HashMap<String, (u16, Value)>>>;

pub struct Api {
    pub port: u16,
    answers: Answers,
    /// Ends with the test.
    _task: JoinSet<()>,
}

impl Api {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Answers::default();
        let (mut task, known) = (JoinSet::new(), answers.clone());
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, known.clone()));
            }
        });
        Api { port, answers, _task: task }
    }

    /// From now on `method` on `path` (without its query) is answered so.
    pub fn put(&self, method: &str, path: &str, code: u16, body: Value) {
        self.answers.lock().unwrap().insert(format!("{method} {path}"), (code, body));
    }
}

async fn serve(mut stream: TcpStream, answers: Answers) {
    let mut head = [0; 16384];
    let (mut seen, mut end) = (0, None);
    while end.is_none() {
        let len = stream.peek(&mut head).await.unwrap();
        if len == 0 {
            return;
        }
        if len == seen {
            tokio::task::yield_now().await;
        }
        seen = len;
        end = head[..len].windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    }
    let text = String::from_utf8_lossy(&head[..end.unwrap()]).into_owned();
    let mut words = text.split_whitespace();
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path = target.split('?').next().unwrap();
    let answer = answers.lock().unwrap().get(&format!("{method} {path}")).cloned();
    if answer.is_none() && path.ends_with("/portforward") {
        let port = target.split_once("ports=").and_then(|(_, port)| port.parse().ok());
        return forward(stream, port.unwrap()).await;
    }
    let length = text.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut request = vec![0; end.unwrap() + length.unwrap_or(0usize)];
    stream.read_exact(&mut request).await.unwrap();
    let missing = || (404, super::refusal(404, "NotFound", &format!("{path} not found"), path));
    let (code, body) = answer.unwrap_or_else(missing);
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}

/// One port, as it was asked for: channel 0 is data, channel 1 errors; each begins by naming the port.
async fn forward(stream: TcpStream, port: u16) {
    #[allow(clippy::result_large_err, reason = "the library's own type")]
    fn protocol(_: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        response.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
        Ok(response)
    }
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, protocol).await.unwrap();
    let mut to = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for channel in [0, 1] {
        let [low, high] = port.to_le_bytes();
        socket.send(Message::binary(vec![channel, low, high])).await.unwrap();
    }
    let mut buffer = [0; 8192];
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(data))) if data.first() == Some(&0) => {
                    if to.write_all(&data[1..]).await.is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                _ => return,
            },
            read = to.read(&mut buffer) => match read {
                Ok(len) if len > 0 => {
                    let data = [&[0], &buffer[..len]].concat();
                    if socket.send(Message::binary(data)).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
