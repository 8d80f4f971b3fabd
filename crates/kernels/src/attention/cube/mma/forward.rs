//! The forward kernel.

use cubecl::prelude::*;

use super::fragment::{Chunk, Pair, highest_of_row, lane, plane_row, sum_of_row};
use super::shape::{BLOCK, PlaneShape, first_column, number_at, row_of};
use super::tile::{add_weighted, load, load_rotated, scale_row, scores_of, store, zeros};
use crate::attention::cube::tables::{beyond, keys_of_span, tile_at};
use crate::cube::soft_cap::soft_capped;

/// Stands for the score of a hidden key. Its exponential is not used.
const HIDDEN: f32 = -1e30;

/// The output `[t, h · e]`, and the log-sum-exp `[t, h]` of the scaled scores. A plane has 16
/// queries; their sums, highest scores and norms are in its registers.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward<E: Float>(
    q: &[Chunk<E>],
    k: &[Chunk<E>],
    v: &[Chunk<E>],
    cos: &[Chunk<f32>],
    sin: &[Chunk<f32>],
    tiles: &[u32],
    spans: &[u32],
    out: &mut [Pair<E>],
    log_sums: &mut [f32],
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] shape: PlaneShape,
    #[define(E)] _type: ElemType,
) {
    let head = CUBE_POS % heads;
    let kv_head = head / (heads / kv_heads);
    let (first, count, position, first_span, end_span) = tile_at(tiles, CUBE_POS / heads);

    let rows = comptime!(shape.rows());
    let columns = comptime!(shape.columns);
    let unrolls = comptime!(shape.unrolls());
    let is_capped = comptime!(shape.heads.is_capped);
    let lane = lane(shape);
    let plane_position = position + plane_row(shape);
    let mut queries =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(rows * shape.stride()), 16usize);
    let mut keys =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(columns * shape.stride()), 16usize);
    let mut values =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(columns * shape.stride()), 16usize);
    let mut sums = zeros(comptime!(shape.heads.width), shape);
    let mut highest = Array::<f32>::new(comptime!(shape.lane_rows()));
    let mut norms = Array::<f32>::new(comptime!(shape.lane_rows()));
    #[unroll(unrolls)]
    for row in 0..comptime!(shape.lane_rows()) {
        highest[row] = HIDDEN;
        norms[row] = 0.0f32;
    }

    load_rotated::<E>(q, cos, sin, &mut queries, first, count, heads, head, rows, unrolls, shape);
    for span in first_span..end_span {
        let (mut key, end, mut key_position) = keys_of_span(spans, span, position, count, window);
        while key < end {
            let key_count = min(columns, end - key);
            sync_cube();
            load_rotated::<E>(
                k, cos, sin, &mut keys, key, key_count, kv_heads, kv_head, columns, unrolls, shape,
            );
            load::<E>(v, &mut values, key, key_count, kv_heads, kv_head, columns, unrolls, shape);
            sync_cube();
            let mut scores = scores_of::<E>(&queries, &keys, shape);
            #[unroll(unrolls)]
            for row in 0..comptime!(shape.lane_rows()) {
                // The query sees the keys of the tile from `first_key` to `end_key`.
                let end = plane_position + row_of(row, lane, shape) + 1;
                let first_key = beyond(end, key_position + window);
                let end_key = min(key_count, beyond(end, key_position));
                let before = highest[row];
                let mut now = before;
                #[unroll(unrolls)]
                for block in 0..comptime!(shape.columns / BLOCK) {
                    #[unroll(unrolls)]
                    for column in 0..comptime!(shape.row_numbers()) {
                        let other = block * BLOCK + first_column(lane, shape) + column;
                        let at = number_at(row, block, column, shape);
                        let is_seen = other >= first_key && other < end_key;
                        let score = soft_capped(scores[at] * scale, softcap, is_capped);
                        let score = select(is_seen, score, HIDDEN.runtime());
                        scores[at] = score;
                        now = max(now, score);
                    }
                }
                now = highest_of_row(now, shape);
                let factor = (before - now).exp();
                let mut norm = norms[row] * factor;
                #[unroll(unrolls)]
                for block in 0..comptime!(shape.columns / BLOCK) {
                    #[unroll(unrolls)]
                    for column in 0..comptime!(shape.row_numbers()) {
                        let at = number_at(row, block, column, shape);
                        let score = scores[at];
                        let weight = select(score > HIDDEN, (score - now).exp(), 0.0f32);
                        scores[at] = weight;
                        norm += weight;
                    }
                }
                highest[row] = now;
                norms[row] = norm;
                scale_row(&mut sums, row, factor, shape);
            }
            add_weighted::<E>(&mut sums, &scores, &values, shape);
            key += columns;
            key_position += columns;
        }
    }

    #[unroll(unrolls)]
    for i in 0..comptime!(shape.lane_rows()) {
        // Each token sees at least its own key.
        let norm = sum_of_row(norms[i], shape);
        scale_row(&mut sums, i, 1.0f32 / norm, shape);
        let row = plane_row(shape) + row_of(i, lane, shape);
        if row < count && first_column(lane, shape) == 0 {
            log_sums[(first + row) * heads + head] = highest[i] + norm.ln();
        }
    }
    store::<E>(out, &sums, first, count, heads, head, shape);
}
