//! What the worker of the page calls, in a browser without a server: requests are the JSON of the HTTP API,
//! answers the data of its events.
//!
//! `cargo xtask web` puts it together with the page of `sar-serve`; `page/backend.js` and `page/worker.js` are
//! the other side.

#![cfg(target_arch = "wasm32")]

use std::ops::ControlFlow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use burn_flex::Flex;
use js_sys::Function;
use sar_kernels::CpuLevel;
use sar_model::Precision;
use sar_pipeline::{Known, MadeWith, Pipeline, Request};
use sar_request::{
    Bounds, EditRequest, Engine, SampleRequest, Told, What, Work, decode_png, draw, parse,
};
use sar_weights::{WeightsFile, checksum};
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;

/// The command that draws the same pictures, for those who have the program.
const COMMAND: &str = "sar sample";

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console)]
    fn error(text: &str);
}

/// What a fault in the program says goes to the browser's console.
#[wasm_bindgen(start)]
fn begin() {
    std::panic::set_hook(Box::new(|fault| error(&fault.to_string())));
}

/// Weights that are loaded.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Sar {
    pipeline: Pipeline<Flex>,
    made_with: MadeWith,
    bounds: Bounds,
}

#[wasm_bindgen]
impl Sar {
    /// Loads weights from the bytes of their files.
    ///
    /// # Errors
    /// If they are none, or do not belong together.
    #[wasm_bindgen(constructor)]
    pub fn new(tokenizer: Vec<u8>, backbone: Vec<u8>) -> Result<Self, JsError> {
        let tokenizer = WeightsFile::from_bytes("tokenizer.safetensors", tokenizer)?;
        let backbone = WeightsFile::from_bytes("backbone.safetensors", backbone)?;
        let device = Default::default();
        let pipeline = Pipeline::load(tokenizer, backbone, &Known::default(), &device)?;
        let level = CpuLevel::chosen().map_err(|why| JsError::new(&why))?;
        let tokenizer = pipeline.tokenizer();
        let made_with = MadeWith {
            precision: Precision::F32,
            device: format!("flex, {level}"),
            tokenizer: checksum(&tokenizer.model, tokenizer.config.layout()),
            backbone: checksum(&pipeline.backbone().model, &sar_model::LAYOUT),
        };
        Ok(Self { pipeline, made_with, bounds: Bounds::default() })
    }

    /// What `/api/model` answers: there are no runs here.
    pub fn model(&self) -> String {
        let mut about = self.pipeline.about();
        about["limits"] = json!(self.bounds);
        about.to_string()
    }

    /// Samples what `/api/sample` takes. `tell` is called with the name of an event and its data as JSON:
    /// `accepted` with the job, `begins`, `scale`, and at last `done` with the pictures. If it returns `false`, nothing
    /// more is drawn and there is no `done`.
    ///
    /// # Errors
    /// Why the request is not carried out, in one sentence.
    pub fn sample(&self, request: &str, tell: &Function) -> Result<(), JsError> {
        let request: SampleRequest = parse(request.as_bytes())?;
        let work = request.work(&self.pipeline, &self.bounds, Some(self.made_with.clone()))?;
        let command = request.command(COMMAND, &self.pipeline)?;
        self.draw(json!({ "kind": "sample", "command": command }), &work, tell)
    }

    /// Edits what `/api/edit` takes, a PNG file without transparency; `tell` as in [`sample`](Self::sample).
    ///
    /// # Errors
    /// Why the request is not carried out, in one sentence.
    pub fn edit(&self, request: &str, tell: &Function) -> Result<(), JsError> {
        let request: EditRequest = parse(request.as_bytes())?;
        let decoded = request.decoded(&self.bounds, decode_png)?;
        let made_with = Some(self.made_with.clone());
        let work = request.work(&self.pipeline, &self.bounds, made_with, decoded)?;
        self.draw(json!({ "kind": "edit" }), &work, tell)
    }

    /// The tokens of what `/api/sample` takes, those of one picture after those of the other, to be compared
    /// with another machine's.
    ///
    /// # Errors
    /// Why the request is not carried out, in one sentence.
    pub fn tokens(&self, request: &str) -> Result<Vec<u32>, JsError> {
        let request: SampleRequest = parse(request.as_bytes())?;
        let work = request.work(&self.pipeline, &self.bounds, None)?;
        let What::Sample { label, seed, scales, sampler } = work.what else {
            return Ok(Vec::new());
        };
        let request = Request { scales, sampler, ..self.pipeline.request(label, work.count, seed) };
        Ok(self.pipeline.tokens(&request).concat())
    }
}

impl Sar {
    fn draw(&self, job: Value, work: &Work, tell: &Function) -> Result<(), JsError> {
        let tell = |name: &str, data: &Value| {
            let answer = tell.call2(&JsValue::NULL, &name.into(), &data.to_string().into());
            match answer {
                Ok(answer) if answer != JsValue::FALSE => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        };
        if tell("accepted", &job).is_break() {
            return Ok(());
        }
        let in_base64 = |files: &[Vec<u8>]| -> Vec<String> {
            files.iter().map(|png| BASE64_STANDARD.encode(png)).collect()
        };
        draw(&self.pipeline, work, &mut |told| match told {
            Told::Begins { mut about, before } => {
                about["before"] = in_base64(&before).into();
                tell("begins", &about)
            }
            Told::Scale { scale, of, pictures } => {
                let pictures = in_base64(&pictures);
                let is_last = scale == of;
                let shown = if is_last { &[][..] } else { &pictures[..] };
                let scale = json!({ "scale": scale, "of": of, "pictures": shown });
                tell("scale", &scale)?;
                if is_last {
                    tell("done", &json!({ "pictures": pictures }))
                } else {
                    ControlFlow::Continue(())
                }
            }
        })?;
        Ok(())
    }
}
