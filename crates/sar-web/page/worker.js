// The worker: what wasm-bindgen makes is in front of this.

let sar;
const tell = (name, data) => postMessage({ name, data });

onmessage = async ({ data: { code, tokenizer, backbone, kind, request } }) => {
  try {
    if (code) {
      await wasm_bindgen({ module_or_path: code });
      sar = new wasm_bindgen.Sar(new Uint8Array(tokenizer), new Uint8Array(backbone));
      tell("ready", JSON.parse(sar.model()));
    } else if (kind === "tokens") {
      tell("done", { tokens: [...sar.tokens(request)] });
    } else {
      sar[kind](request, (name, data) => tell(name, JSON.parse(data)));
    }
  } catch (error) {
    tell(error instanceof WebAssembly.RuntimeError ? "fault" : "failed", { error: error.message });
  }
};
