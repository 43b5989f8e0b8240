//! The golden tensors of a tokenizer.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use sar_core::{Filter, ScaleSize, resample};
use sar_loss::vq;
use sar_tokenizer::{Tokenizer, codebook};

use crate::check::{Inner, Run};

impl<A: AutodiffBackend> Run<'_, A> {
    /// FlexVAR's; returns the tokens of all scales.
    pub(crate) fn direct_tokenizer(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        image_bchw: Tensor<Inner<A>, 4>,
    ) -> Tensor<Inner<A>, 2, Int> {
        let schedule = &self.case.scales;
        let [b, ..] = image_bchw.dims();
        let features_bchw = tokenizer.features(image_bchw);
        let h_bchw = tokenizer.project(features_bchw.clone());
        self.floats("tokenizer.latent", h_bchw.clone());

        let tokens_bl = tokenizer.tokens(h_bchw.clone(), schedule);
        let searched = schedule.sizes().iter().map(|_| h_bchw.clone()).collect();
        self.scale_tokens(tokenizer, tokens_bl.clone(), searched);

        let [_, _, height, width] = h_bchw.dims();
        let quantizer = tokenizer.quantizer();
        let full = ScaleSize { height, width };
        let quantized = quantizer.quantize(h_bchw.clone(), &[full], None);
        let full_bn = quantized.indices_n.clone().reshape([b, height * width]);
        let scores = || distance_scores(tokenizer, h_bchw.clone());
        self.tokens("tokenizer.indices_full", full_bn, scores);
        let codes_nc = tokenizer.codebook().codes().select(0, quantized.indices_n);
        let [_, c] = codes_nc.dims();
        let q_bchw = codes_nc.reshape([b, height, width, c]).permute([0, 3, 1, 2]);
        self.floats("tokenizer.recon_full", tokenizer.decode(q_bchw));
        let pairs = quantized.pairs;
        self.floats("tokenizer.vq_loss", vq::mean_over(&pairs, vq::codebook));
        let commitment = vq::mean_over(&pairs, vq::commitment) * self.case.commit_beta;
        self.floats("tokenizer.commit_loss", commitment);
        let codes_vc = tokenizer.codebook().codes();
        let entropy = vq::mean_over(&pairs, |z_nc, _| vq::entropy(z_nc, codes_vc.clone()));
        self.floats("tokenizer.entropy_loss", entropy);
        self.floats("tokenizer.straight_through", quantized.straight_through_bchw);

        for side in self.sides("tokenizer.multi_scale_recon.") {
            let size = ScaleSize::square(side);
            let h = tokenizer.project(resample(features_bchw.clone(), size, Filter::Area));
            let quantized = quantizer.quantize(h, &[size], None);
            let recon = tokenizer.decode(quantized.straight_through_bchw);
            self.floats(&format!("tokenizer.multi_scale_recon.{side}"), recon);
        }
        tokens_bl
    }

    /// VAR's; returns the tokens of all scales.
    pub(crate) fn residual_tokenizer(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        image_bchw: Tensor<Inner<A>, 4>,
    ) -> Tensor<Inner<A>, 2, Int> {
        let schedule = &self.case.scales;
        let f_bchw = tokenizer.encode(image_bchw);
        self.floats("tokenizer.latent", f_bchw.clone());

        let tokens_bl = tokenizer.tokens(f_bchw.clone(), schedule);
        let f_hats = tokenizer.canvases(tokens_bl.clone(), schedule);
        let rests = f_hats.iter().map(|f_hat| f_bchw.clone() - f_hat.clone());
        let searched = std::iter::once(f_bchw.clone()).chain(rests).collect();
        self.scale_tokens(tokenizer, tokens_bl.clone(), searched);
        for (size, f_hat) in schedule.sizes().iter().zip(&f_hats) {
            self.floats(&format!("tokenizer.f_hat.{}", size.height), f_hat.clone());
        }
        let last = f_hats[f_hats.len() - 1].clone();
        self.floats("tokenizer.recon", tokenizer.decode(last).clamp(-1.0, 1.0));

        let quantized = tokenizer.quantizer().quantize(f_bchw, schedule.sizes(), None);
        let pairs = quantized.pairs;
        let commitment = vq::mean_over(&pairs, vq::commitment) * self.case.commit_beta;
        let loss = vq::mean_over(&pairs, vq::codebook) + commitment;
        self.floats("tokenizer.vq_loss", loss);
        self.floats("tokenizer.straight_through", quantized.straight_through_bchw);
        tokens_bl
    }

    /// Tokens by scale and all together; `searched` holds what each scale looks for, before it is
    /// resampled.
    fn scale_tokens(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        tokens_bl: Tensor<Inner<A>, 2, Int>,
        searched: Vec<Tensor<Inner<A>, 4>>,
    ) {
        let schedule = &self.case.scales;
        let [b, _] = tokens_bl.dims();
        let scores = |k: usize| {
            let size = schedule.size(k);
            distance_scores(tokenizer, resample(searched[k].clone(), size, Filter::Area))
        };
        for (k, range) in schedule.ranges().enumerate() {
            let name = format!("tokenizer.indices.{}", schedule.size(k).height);
            self.tokens(&name, tokens_bl.clone().slice_dim(1, range), || scores(k));
        }
        let pyramid_scores = || {
            let scales = schedule.sizes().iter().enumerate().map(|(k, size)| {
                let rows = scores(k);
                let [_, v] = rows.dims();
                rows.reshape([b, size.tokens(), v])
            });
            let all = Tensor::cat(scales.collect(), 1);
            let [b, l, v] = all.dims();
            all.reshape([b * l, v])
        };
        self.tokens("teacher.target", tokens_bl, pyramid_scores);
    }
}

/// Minus the squared distance of every position to every code, up to a constant per position.
fn distance_scores<B: Backend>(tokenizer: &Tokenizer<B>, h_bchw: Tensor<B, 4>) -> Tensor<B, 2> {
    tokenizer.codebook().nearness(codebook::rows(h_bchw)) * 2.0
}
