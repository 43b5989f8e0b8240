//! The page: files in the program, nothing from elsewhere.

/// A file of the page: its address, its type, its text.
pub(crate) type File = (&'static str, &'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// All of them.
pub(crate) const FILES: &[File] = &[
    ("/", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
    ("/icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
    ("/app.js", SCRIPT, include_str!("../page/app.js")),
    ("/api.js", SCRIPT, include_str!("../page/api.js")),
    ("/backend.js", SCRIPT, include_str!("../page/backend.js")),
    ("/jobs.js", SCRIPT, include_str!("../page/jobs.js")),
    ("/sample.js", SCRIPT, include_str!("../page/sample.js")),
    ("/edit.js", SCRIPT, include_str!("../page/edit.js")),
    ("/runs.js", SCRIPT, include_str!("../page/runs.js")),
    ("/chart.js", SCRIPT, include_str!("../page/chart.js")),
];

/// Scripts, styles, pictures and connections of this server alone.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
