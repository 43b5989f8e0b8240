//! What is answered where.

use std::convert::Infallible;
use std::fmt::{self, Debug};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router, middleware};
use futures_util::stream;
use sar_data::decode_image;
use sar_pipeline::MadeWith;
use sar_request::{EditRequest, Engine, SampleRequest, Work, parse};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::Limits;
use crate::answers::Refusal;
use crate::bodies::{Bodies, body};
use crate::guard::{Guard, guard};
use crate::jobs::{Job, Jobs, Status, Watcher};
use crate::page::FILES;
use crate::runs;

/// The longest request without a picture, in bytes.
const SMALL_BODY: usize = 1 << 16;
/// Pictures of runs that are sent at the same time: they can be large.
pub(crate) const MOST_SENT: usize = 8;
/// Bytes of them that are handed on together.
const PART: usize = 1 << 16;
/// A silent stream shows that it lives.
const ALIVE: Duration = Duration::from_secs(5);
/// What the API is, for programs.
pub(crate) const OPEN_API: &str = include_str!("openapi.json");

/// What all requests share.
pub(crate) struct App {
    pub(crate) about: Value,
    pub(crate) engine: Mutex<Box<dyn Engine>>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) runs: Option<PathBuf>,
    pub(crate) command: String,
    pub(crate) made_with: Option<MadeWith>,
    pub(crate) limits: Limits,
    /// Requests with pictures that are in memory until they are decoded.
    pub(crate) bodies: Bodies,
    /// Pictures that are decoded at the same time.
    pub(crate) uploads: Arc<Semaphore>,
    /// Runs that are read at the same time.
    pub(crate) reads: Arc<Semaphore>,
    /// Pictures of runs that are in memory until they are sent.
    pub(crate) sent: Arc<Semaphore>,
}

impl Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

type Shared = State<Arc<App>>;

/// An address, its methods, and what answers them.
pub(crate) type Route = (&'static str, &'static [&'static str], MethodRouter<Arc<App>>);

/// The API.
pub(crate) fn api() -> [Route; 13] {
    [
        ("/api/openapi.json", &["get"], get(open_api)),
        ("/api/model", &["get"], get(model)),
        ("/api/queue", &["get"], get(queue)),
        ("/api/sample", &["post"], post(sample)),
        ("/api/edit", &["post"], post(edit)),
        ("/api/jobs/{id}", &["get", "delete"], get(job).delete(cancel)),
        ("/api/jobs/{id}/events", &["get"], get(events)),
        ("/api/jobs/{id}/pictures/{i}", &["get"], get(picture)),
        ("/api/jobs/{id}/before/{i}", &["get"], get(before)),
        ("/api/runs", &["get"], get(all_runs)),
        ("/api/runs/{name}", &["get"], get(run)),
        ("/api/runs/{name}/pictures/{picture}", &["get"], get(run_picture)),
        ("/api/runs/{name}/stop", &["post"], post(stop_run)),
    ]
}

/// Everything that is answered.
pub(crate) fn router(app: App, who: Guard) -> Router {
    let mut router = Router::new();
    for (path, content_type, text) in FILES {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        router = router.route(path, get(move || async move { (headers, *text) }));
    }
    for (path, _, methods) in api() {
        router = router.route(path, methods);
    }
    router
        .fallback(|| async { Refusal::missing("page") })
        .method_not_allowed_fallback(|method: Method| async move {
            let why = format!("{method} is not answered here");
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why)
        })
        .with_state(Arc::new(app))
        .layer(middleware::from_fn_with_state(who, guard))
}

async fn open_api() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPEN_API)
}

async fn model(State(app): Shared) -> Json<Value> {
    let mut about = app.about.clone();
    about["limits"] = json!(app.limits.bounds());
    about["runs"] = app.runs.is_some().into();
    Json(about)
}

async fn queue(State(app): Shared) -> Json<Value> {
    Json(app.jobs.summary())
}

/// Work that would hold up other requests.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let fault = "a fault in the program; what it said is where the server runs";
    let refuse = |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, fault);
    spawn_blocking(work).await.map_err(refuse)?
}

impl App {
    /// Asks the model something that takes no time.
    fn ask<T>(&self, question: impl FnOnce(&dyn Engine) -> T) -> T {
        question(&**self.engine.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn accept(&self, about: Value, work: Work) -> Result<Response, Refusal> {
        let job = self.jobs.submit(about, work)?;
        let place = HeaderValue::from_str(&format!("/api/jobs/{}", job.id));
        let mut response = (StatusCode::ACCEPTED, Json(job.to_json())).into_response();
        if let Ok(place) = place {
            response.headers_mut().insert(header::LOCATION, place);
        }
        Ok(response)
    }
}

async fn sample(State(app): Shared, request: Request) -> Result<Response, Refusal> {
    let body = body(request, SMALL_BODY, app.limits.patience).await?;
    let request: SampleRequest = parse(&body)?;
    let (work, command) = app.ask(|engine| {
        let work = request.work(engine, &app.limits.bounds(), app.made_with.clone())?;
        Ok::<_, Refusal>((work, request.command(&app.command, engine)?))
    })?;
    app.accept(json!({ "kind": "sample", "request": request, "command": command }), work)
}

async fn edit(State(app): Shared, request: Request) -> Result<Response, Refusal> {
    let limits = app.limits;
    // Who sends slowly takes nobody's turn.
    let body = app.bodies.read(request, limits.body, limits.patience).await?;
    let turn = timeout(limits.patience, Arc::clone(&app.uploads).acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(Refusal::busy("other pictures are being decoded; try again in a few seconds"));
    };
    let (request, decoded) = aside(move || {
        // Kept to the end of the work, whether or not the client waits for it.
        let _turn = turn;
        let request: EditRequest = parse(&body.bytes)?;
        drop(body);
        let decoded = request.decoded(&limits.bounds(), decode_image)?;
        Ok((request, decoded))
    })
    .await?;
    let (bounds, made_with) = (limits.bounds(), app.made_with.clone());
    let work = app.ask(|engine| request.work(engine, &bounds, made_with, decoded))?;
    app.accept(json!({ "kind": "edit", "request": request.shown() }), work)
}

async fn job(State(app): Shared, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    Ok(Json(app.jobs.find(&id)?.to_json()))
}

async fn cancel(State(app): Shared, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    Ok(Json(app.jobs.cancel(&id)?.to_json()))
}

/// What a client has seen of a job.
struct Cursor {
    watcher: Watcher,
    ahead: Option<usize>,
    has_begun: bool,
    scales: usize,
    has_ended: bool,
}

async fn events(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let watcher = Watcher::new(app.jobs.find(&id)?);
    // One that comes back goes on where it was.
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let scales = seen.unwrap_or(0);
    let cursor = Cursor { watcher, ahead: None, has_begun: false, scales, has_ended: false };
    let stream = stream::unfold(cursor, |mut cursor| async move {
        cursor.next().await.map(|event| (Ok::<_, Infallible>(event), cursor))
    });
    let sse = Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE));
    // Proxies that collect what is sent would show the scales all at once.
    Ok(([("x-accel-buffering", "no")], sse).into_response())
}

impl Cursor {
    async fn next(&mut self) -> Option<Event> {
        while !self.has_ended {
            if let Some(event) = self.unseen() {
                return Some(event);
            }
            self.watcher.states.changed().await.ok()?;
        }
        None
    }

    /// The next event that is there already.
    fn unseen(&mut self) -> Option<Event> {
        let Watcher { job, states } = &mut self.watcher;
        let state = states.borrow_and_update();
        let event = |name: &str, data: Value| Event::default().event(name).data(data.to_string());
        if state.status == Status::Queued && self.ahead != Some(state.ahead) {
            self.ahead = Some(state.ahead);
            return Some(event("queued", json!({ "ahead": state.ahead })));
        }
        if let Some(begun) = state.begun.as_ref().filter(|_| !self.has_begun) {
            self.has_begun = true;
            let mut begun = begun.clone();
            begun["before"] = job.urls("before", state.before.len());
            return Some(event("begins", begun));
        }
        if let Some(scale) = state.scales.get(self.scales) {
            self.scales += 1;
            let id = self.scales.to_string();
            return Some(Event::default().event("scale").id(id).data(&**scale));
        }
        if state.status.is_final() {
            self.has_ended = true;
            let data = match &state.error {
                Some(error) => json!({ "error": error }),
                None => json!({ "pictures": job.urls("pictures", state.pictures.len()) }),
            };
            return Some(event(state.status.name(), data));
        }
        None
    }
}

fn png(bytes: Bytes, name: &str) -> Response {
    let named = HeaderValue::from_str(&format!("inline; filename=\"{name}.png\""));
    let mut response = ([(header::CONTENT_TYPE, "image/png")], bytes).into_response();
    let headers = response.headers_mut();
    let cached = HeaderValue::from_static("private, max-age=3600");
    headers.insert(header::CACHE_CONTROL, cached);
    if let Ok(named) = named {
        headers.insert(header::CONTENT_DISPOSITION, named);
    }
    response
}

fn one_of(job: &Job, files: &[Bytes], i: &str) -> Result<Response, Refusal> {
    let file = i.parse::<usize>().ok().and_then(|i| files.get(i));
    let file = file.ok_or_else(|| Refusal::missing("picture"))?;
    Ok(png(file.clone(), &format!("sar-{}-{i}", job.id)))
}

async fn picture(
    State(app): Shared,
    Path((id, i)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let job = app.jobs.find(&id)?;
    one_of(&job, &job.state().pictures, &i)
}

async fn before(
    State(app): Shared,
    Path((id, i)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let job = app.jobs.find(&id)?;
    one_of(&job, &job.state().before, &i)
}

/// The folder of runs.
fn folder(app: &App) -> Result<PathBuf, Refusal> {
    let none = "no folder of runs is shown; start with --runs DIR";
    app.runs.clone().ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, none))
}

/// A turn to read runs: their files are long.
async fn reading(app: &App) -> Result<OwnedSemaphorePermit, Refusal> {
    match timeout(app.limits.patience, Arc::clone(&app.reads).acquire_owned()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(Refusal::busy("other runs are being read; try again in a few seconds")),
    }
}

async fn all_runs(State(app): Shared) -> Result<Json<Value>, Refusal> {
    let folder = folder(&app)?;
    let turn = reading(&app).await?;
    aside(move || {
        let _turn = turn;
        Ok(Json(runs::list(&folder)))
    })
    .await
}

async fn run(
    State(app): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let folder = folder(&app)?;
    let turn = reading(&app).await?;
    aside(move || {
        let _turn = turn;
        let run = runs::find(&folder, &name)?;
        let tag = HeaderValue::from_str(&run.tag());
        if headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|known| tag.as_ref().is_ok_and(|tag| tag == known))
        {
            return Ok(StatusCode::NOT_MODIFIED.into_response());
        }
        let mut response = Json(run.whole()).into_response();
        if let Ok(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        Ok(response)
    })
    .await
}

/// A body that keeps a place until the client has taken it, or is gone.
fn in_parts(bytes: Bytes, place: OwnedSemaphorePermit) -> Body {
    Body::from_stream(stream::unfold((bytes, place), |(mut rest, place)| async move {
        let part = rest.split_to(rest.len().min(PART));
        (!part.is_empty()).then_some((Ok::<Bytes, Infallible>(part), (rest, place)))
    }))
}

async fn run_picture(
    State(app): Shared,
    Path((name, picture)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let folder = folder(&app)?;
    let place = timeout(app.limits.patience, Arc::clone(&app.sent).acquire_owned()).await;
    let Ok(Ok(place)) = place else {
        return Err(Refusal::busy("other pictures are being sent; try again in a few seconds"));
    };
    aside(move || {
        let bytes = Bytes::from(runs::find(&folder, &name)?.picture(&picture)?);
        let length = HeaderValue::from(bytes.len());
        let mut response = png(Bytes::new(), "run");
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
        *response.body_mut() = in_parts(bytes, place);
        // A run that goes on draws them anew.
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.remove(header::CONTENT_DISPOSITION);
        Ok(response)
    })
    .await
}

async fn stop_run(State(app): Shared, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let folder = folder(&app)?;
    aside(move || {
        let run = runs::find(&folder, &name)?;
        run.stop()?;
        Ok(Json(run.summary()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_every_route_and_no_other() {
        let described: Value = serde_json::from_str(OPEN_API).unwrap();
        let mut expected: Vec<String> = Vec::new();
        for (path, methods, _) in api() {
            expected.extend(methods.iter().map(|method| format!("{method} {path}")));
        }
        let mut found: Vec<String> = Vec::new();
        for (path, item) in described["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                found.push(format!("{method} {path}"));
                assert!(operation["summary"].is_string(), "{method} {path}");
                let named: Vec<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                let in_path: Vec<&str> =
                    path.split('{').skip(1).filter_map(|part| part.split('}').next()).collect();
                assert_eq!(named, in_path, "{method} {path}");
            }
        }
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_description_has_every_field_and_no_other() {
        let described: Value = serde_json::from_str(OPEN_API).unwrap();
        let sample = json!(SampleRequest::default());
        let edit: EditRequest = parse(br#"{"image": "", "mode": "refine"}"#).unwrap();
        for (name, request) in [("SampleRequest", sample), ("EditRequest", json!(edit))] {
            let fields = |value: &Value| -> Vec<String> {
                let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
                names.sort();
                names
            };
            let properties = &described["components"]["schemas"][name]["properties"];
            assert_eq!(fields(properties), fields(&request), "{name}");
        }
    }

    #[test]
    fn references_of_the_description_lead_somewhere() {
        let described: Value = serde_json::from_str(OPEN_API).unwrap();
        fn walk(value: &Value, whole: &Value) {
            if let Some(place) = value["$ref"].as_str() {
                assert!(whole.pointer(place.trim_start_matches('#')).is_some(), "{place}");
            }
            match value {
                Value::Array(all) => all.iter().for_each(|value| walk(value, whole)),
                Value::Object(all) => all.values().for_each(|value| walk(value, whole)),
                _ => {}
            }
        }
        walk(&described, &described);
        for way in described["security"].as_array().unwrap() {
            for name in way.as_object().unwrap().keys() {
                assert!(described["components"]["securitySchemes"][name].is_object(), "{name}");
            }
        }
    }
}
