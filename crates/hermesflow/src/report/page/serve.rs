//! A server of the page for this machine alone: it listens on loopback, writes nothing, and serves the page, its version
//! and the pictures of its runs.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tiny_http::{Header, Method, Request, Response, Server};

use super::Page;
use super::thumbnails::{Links, unescaped};
use crate::digest;

/// A page is made anew at most so often.
const FRESH: Duration = Duration::from_secs(5);
/// Where the server listens: the first free one of these ports.
const PORTS: std::ops::Range<u16> = 6420..6440;

/// A server that listens already.
pub struct Serving {
    server: Server,
    folders: Vec<PathBuf>,
    page: Option<(Instant, String, Vec<u8>)>,
}

impl Serving {
    /// Listens on a free port of 127.0.0.1; the address is returned. The folders need not hold a run yet.
    ///
    /// # Errors
    /// When no port is free.
    pub fn listen(folders: Vec<PathBuf>) -> Result<(Self, String)> {
        let mut failed = None;
        for port in PORTS {
            match Server::http(("127.0.0.1", port)) {
                Ok(server) => return Ok((Self { server, folders, page: None }, format!("http://127.0.0.1:{port}/"))),
                Err(error) => failed = Some(error),
            }
        }
        let said = failed.map_or_else(String::new, |error| format!(": {error}"));
        Err(anyhow!("no port from {} to {} of 127.0.0.1 is free{said}", PORTS.start, PORTS.end - 1))
    }

    /// Answers requests until the program ends.
    pub fn run(mut self) {
        while let Ok(request) = self.server.recv() {
            let response = self.answer(&request).unwrap_or_else(|error| plain(500, &format!("{error:#}\n")));
            let _ = request.respond(response); // who asked may have left
        }
    }

    fn answer(&mut self, request: &Request) -> Result<Response<Cursor<Vec<u8>>>> {
        let path = request.url().split(['?', '#']).next().unwrap_or_default().to_owned();
        // A page of the web that names this server under another name is not answered.
        let host =
            request.headers().iter().find(|header| header.field.equiv("Host")).map(|header| header.value.as_str());
        let here = |host: &str| ["127.0.0.1", "localhost"].contains(&host.split(':').next().unwrap_or_default());
        if *request.method() != Method::Get || !host.is_some_and(here) {
            return Ok(plain(403, "only this machine's browser is answered\n"));
        }
        match path.as_str() {
            "/" => Ok(typed(self.page()?.1.clone(), "text/html; charset=utf-8")),
            "/version" => Ok(plain(200, &self.page()?.0.clone())),
            path => match path.strip_prefix("/picture/").and_then(|path| path.split_once('/')) {
                Some((run, picture)) => {
                    Ok(self.picture(run, picture).unwrap_or_else(|| plain(404, "no such picture\n")))
                }
                None => Ok(plain(404, "there is only the page at /\n")),
            },
        }
    }

    /// The version of the page, and the page: made anew where the last one is older than a few seconds.
    fn page(&mut self) -> Result<(String, &Vec<u8>)> {
        if self.page.as_ref().is_none_or(|(made, ..)| made.elapsed() > FRESH) {
            let mut bytes = Vec::new();
            match Page::open(&self.folders) {
                Ok(page) => page.render(Links::Served, true, &mut bytes)?,
                Err(error) => bytes.extend(waiting(&format!("{error:#}")).bytes()),
            }
            self.page = Some((Instant::now(), digest::digest([&bytes]), bytes));
        }
        let (_, version, bytes) = self.page.as_ref().context("the page was just made")?;
        Ok((version.clone(), bytes))
    }

    /// A picture of a run's data root, and of nowhere else.
    fn picture(&self, run: &str, picture: &str) -> Option<Response<Cursor<Vec<u8>>>> {
        let page = Page::open(&self.folders).ok()?;
        let root = &page.0.get(run.parse::<usize>().ok()?)?.config.data.root;
        let file = root.join(unescaped(picture)?);
        let bytes = fs::read(&file).ok()?;
        let format = image::guess_format(&bytes).ok()?;
        Some(typed(bytes, format.to_mime_type()))
    }
}

/// A page that waits for a run to begin.
fn waiting(message: &str) -> String {
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=3><title>HermesFlow report</title>\
         <body style=\"font:16px system-ui;margin:3em\"><h1>Waiting for the run</h1><p>{message}</p>"
    )
}

fn typed(bytes: Vec<u8>, kind: &str) -> Response<Cursor<Vec<u8>>> {
    let response = Response::from_data(bytes);
    match Header::from_bytes("Content-Type", kind) {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    }
}

fn plain(status: u16, text: &str) -> Response<Cursor<Vec<u8>>> {
    typed(text.as_bytes().to_vec(), "text/plain; charset=utf-8").with_status_code(status)
}

/// Serves the page of a folder on a thread of its own, for as long as the program lives; the address.
///
/// # Errors
/// As [`Serving::listen`].
pub fn beside(folder: &Path) -> Result<String> {
    let (serving, address) = Serving::listen(vec![folder.to_owned()])?;
    std::thread::spawn(move || serving.run());
    Ok(address)
}
