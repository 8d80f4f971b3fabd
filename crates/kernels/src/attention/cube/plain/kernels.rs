//! The attention kernels. Each does a whole batch: a cube has one tile of the table and one head.
//!
//! Scores exist one tile at a time. The forward pass keeps `ln Σ exp(score)` of each query and
//! head, from which the backward pass computes the weights again (FlashAttention, arXiv 2205.14135
//! and 2307.08691).

use cubecl::prelude::*;

use super::tile::{
    BLOCK, TileShape, add_weighted, block_of_scores, load, load_rotated, scale_rows, sees, store,
    store_blocks, store_rotated_back, zeros,
};
use crate::attention::cube::tables::{keys_of_span, queries_of_span, tile_at};
use crate::cube::soft_cap::{slope_of_cap, soft_capped};

/// Stands for the score of a hidden key. Its exponential is never taken.
const HIDDEN: f32 = -1e30;

/// The output `[t, h · e]`, and the log-sum-exp `[t, h]` of the scaled scores.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward<E: Float>(
    q: &[E],
    k: &[E],
    v: &[E],
    cos: &[f32],
    sin: &[f32],
    tiles: &[u32],
    spans: &[u32],
    out: &mut [E],
    log_sums: &mut [f32],
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] shape: TileShape,
    #[define(E)] _type: ElemType,
) {
    let head = CUBE_POS % heads;
    let kv_head = head / (heads / kv_heads);
    let (first, count, position, first_span, end_span) = tile_at(tiles, CUBE_POS / heads);

    let tile = comptime!(shape.tile);
    let rows = comptime!(shape.tile / BLOCK);
    let unit = UNIT_POS as usize;
    let mut queries = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut keys = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.tile));
    let mut highest = Shared::<[f32]>::new_slice(comptime!(shape.tile));
    let mut norm = Shared::<[f32]>::new_slice(comptime!(shape.tile));
    let mut factors = Shared::<[f32]>::new_slice(comptime!(shape.tile));
    let mut sums = zeros(shape);

    load_rotated::<E>(q, cos, sin, &mut queries, first, count, heads, head, shape);
    let mut row = unit;
    while row < tile {
        highest[row] = HIDDEN;
        norm[row] = 0.0f32;
        row += comptime!(shape.units);
    }

    for span in first_span..end_span {
        let (mut key, end, mut key_position) = keys_of_span(spans, span, position, count, window);
        while key < end {
            let key_count = min(tile, end - key);
            sync_cube();
            load_rotated::<E>(k, cos, sin, &mut keys, key, key_count, kv_heads, kv_head, shape);
            sync_cube();
            let mut block = unit;
            while block < comptime!(rows * rows) {
                let row = block / rows;
                let column = block % rows;
                let scores = block_of_scores(&queries, &keys, row, column, shape);
                #[unroll]
                for i in 0..BLOCK {
                    #[unroll]
                    for j in 0..BLOCK {
                        let query = row + i * rows;
                        let other = column + j * rows;
                        let mut score = HIDDEN.runtime();
                        if query < count
                            && other < key_count
                            && sees(position + query, key_position + other, window)
                        {
                            let scaled = scores[i * BLOCK + j] * scale;
                            score = soft_capped(scaled, softcap, comptime!(shape.heads.is_capped));
                        }
                        weights[query * tile + other] = score;
                    }
                }
                block += comptime!(shape.units);
            }
            sync_cube();
            load::<E>(v, &mut keys, key, key_count, kv_heads, kv_head, shape);
            let mut row = unit;
            while row < tile {
                let before = highest[row];
                let mut now = before;
                for other in 0..tile.runtime() {
                    now = max(now, weights[row * tile + other]);
                }
                let factor = (before - now).exp();
                let mut sum = norm[row] * factor;
                for other in 0..tile.runtime() {
                    let score = weights[row * tile + other];
                    let mut weight = 0.0f32;
                    if score > HIDDEN {
                        weight = (score - now).exp();
                    }
                    weights[row * tile + other] = weight;
                    sum += weight;
                }
                highest[row] = now;
                norm[row] = sum;
                factors[row] = factor;
                row += comptime!(shape.units);
            }
            sync_cube();
            scale_rows(&mut sums, &factors, shape);
            add_weighted(&mut sums, &weights, &keys, false, shape);
            key += tile;
            key_position += tile;
        }
    }

    // Each row sees at least its own key.
    sync_cube();
    let mut row = unit;
    while row < count {
        factors[row] = 1.0f32 / norm[row];
        log_sums[(first + row) * heads + head] = highest[row] + norm[row].ln();
        row += comptime!(shape.units);
    }
    sync_cube();
    scale_rows(&mut sums, &factors, shape);
    store_blocks(&sums, &mut keys, shape);
    sync_cube();
    store::<E>(out, &keys, first, count, heads, head, shape);
}

/// Weights and gradients of the scaled scores of one tile of queries and one of keys, both `[tile,
/// tile]`: `p = exp(score − log_sum)` and `p · (d · v − product) · scale`, times the slope of the
/// soft cap.
#[cube]
fn weights_and_gradients(
    queries: &Shared<[f32]>,
    keys: &Shared<[f32]>,
    values: &Shared<[f32]>,
    d_out: &Shared<[f32]>,
    log_sums: &[f32],
    products: &[f32],
    weights: &mut Shared<[f32]>,
    gradients: &mut Shared<[f32]>,
    // First token, tokens and position of the queries; tokens and position of the keys.
    query_first: usize,
    query_count: usize,
    query_position: usize,
    key_count: usize,
    key_position: usize,
    heads: usize,
    head: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] shape: TileShape,
) {
    let tile = comptime!(shape.tile);
    let rows = comptime!(shape.tile / BLOCK);
    let mut block = UNIT_POS as usize;
    while block < comptime!(rows * rows) {
        let row = block / rows;
        let column = block % rows;
        let scores = block_of_scores(queries, keys, row, column, shape);
        let d_weights = block_of_scores(d_out, values, row, column, shape);
        #[unroll]
        for i in 0..BLOCK {
            #[unroll]
            for j in 0..BLOCK {
                let query = row + i * rows;
                let key = column + j * rows;
                let mut weight = 0.0f32;
                let mut gradient = 0.0f32;
                if query < query_count
                    && key < key_count
                    && sees(query_position + query, key_position + key, window)
                {
                    let of_head = (query_first + query) * heads + head;
                    let scaled = scores[i * BLOCK + j] * scale;
                    let score = soft_capped(scaled, softcap, comptime!(shape.heads.is_capped));
                    let slope = slope_of_cap(score, softcap, comptime!(shape.heads.is_capped));
                    weight = (score - log_sums[of_head]).exp();
                    let d_weight = d_weights[i * BLOCK + j] - products[of_head];
                    gradient = weight * d_weight * slope * scale;
                }
                weights[query * tile + key] = weight;
                gradients[query * tile + key] = gradient;
            }
        }
        block += comptime!(shape.units);
    }
}

/// The gradient of the queries, `[t, h · e]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn query_gradient<E: Float>(
    q: &[E],
    k: &[E],
    v: &[E],
    cos: &[f32],
    sin: &[f32],
    tiles: &[u32],
    spans: &[u32],
    d_out: &[E],
    log_sums: &[f32],
    products: &[f32],
    dq: &mut [E],
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] shape: TileShape,
    #[define(E)] _type: ElemType,
) {
    let head = CUBE_POS % heads;
    let kv_head = head / (heads / kv_heads);
    let (first, count, position, first_span, end_span) = tile_at(tiles, CUBE_POS / heads);

    let tile = comptime!(shape.tile);
    let mut queries = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut d_tile = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut keys = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut values = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.tile));
    let mut gradients = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.tile));
    let mut sums = zeros(shape);

    load_rotated::<E>(q, cos, sin, &mut queries, first, count, heads, head, shape);
    load::<E>(d_out, &mut d_tile, first, count, heads, head, shape);
    for span in first_span..end_span {
        let (mut key, end, mut key_position) = keys_of_span(spans, span, position, count, window);
        while key < end {
            let key_count = min(tile, end - key);
            sync_cube();
            load_rotated::<E>(k, cos, sin, &mut keys, key, key_count, kv_heads, kv_head, shape);
            load::<E>(v, &mut values, key, key_count, kv_heads, kv_head, shape);
            sync_cube();
            weights_and_gradients(
                &queries,
                &keys,
                &values,
                &d_tile,
                log_sums,
                products,
                &mut weights,
                &mut gradients,
                first,
                count,
                position,
                key_count,
                key_position,
                heads,
                head,
                window,
                scale,
                softcap,
                shape,
            );
            sync_cube();
            add_weighted(&mut sums, &gradients, &keys, false, shape);
            key += tile;
            key_position += tile;
        }
    }
    sync_cube();
    store_blocks(&sums, &mut keys, shape);
    sync_cube();
    store_rotated_back::<E>(dq, cos, sin, &keys, first, count, heads, head, shape);
}

/// The gradients of keys and values, both `[t, g · e]`. A cube has a tile of keys and a key-value
/// head. It visits the queries that may see them, in all heads that share the key-value head.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn key_value_gradients<E: Float>(
    q: &[E],
    k: &[E],
    v: &[E],
    cos: &[f32],
    sin: &[f32],
    tiles: &[u32],
    spans: &[u32],
    d_out: &[E],
    log_sums: &[f32],
    products: &[f32],
    dk: &mut [E],
    dv: &mut [E],
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] shape: TileShape,
    #[define(E)] _type: ElemType,
) {
    let kv_head = CUBE_POS % kv_heads;
    let (first, count, position, first_span, end_span) = tile_at(tiles, CUBE_POS / kv_heads);

    let tile = comptime!(shape.tile);
    let mut keys = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut values = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut queries = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut d_tile = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.stride()));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.tile));
    let mut gradients = Shared::<[f32]>::new_slice(comptime!(shape.tile * shape.tile));
    let mut key_sums = zeros(shape);
    let mut value_sums = zeros(shape);

    load_rotated::<E>(k, cos, sin, &mut keys, first, count, kv_heads, kv_head, shape);
    load::<E>(v, &mut values, first, count, kv_heads, kv_head, shape);
    let repeat = heads / kv_heads;
    for shared in 0..repeat {
        let head = kv_head * repeat + shared;
        for span in first_span..end_span {
            let (mut query, end, mut query_position) =
                queries_of_span(spans, span, position, count, window);
            while query < end {
                let query_count = min(tile, end - query);
                sync_cube();
                load_rotated::<E>(
                    q,
                    cos,
                    sin,
                    &mut queries,
                    query,
                    query_count,
                    heads,
                    head,
                    shape,
                );
                load::<E>(d_out, &mut d_tile, query, query_count, heads, head, shape);
                sync_cube();
                weights_and_gradients(
                    &queries,
                    &keys,
                    &values,
                    &d_tile,
                    log_sums,
                    products,
                    &mut weights,
                    &mut gradients,
                    query,
                    query_count,
                    query_position,
                    count,
                    position,
                    heads,
                    head,
                    window,
                    scale,
                    softcap,
                    shape,
                );
                sync_cube();
                add_weighted(&mut key_sums, &gradients, &queries, true, shape);
                add_weighted(&mut value_sums, &weights, &d_tile, true, shape);
                query += tile;
                query_position += tile;
            }
        }
    }
    sync_cube();
    store_blocks(&key_sums, &mut queries, shape);
    store_blocks(&value_sums, &mut d_tile, shape);
    sync_cube();
    store_rotated_back::<E>(dk, cos, sin, &queries, first, count, kv_heads, kv_head, shape);
    store::<E>(dv, &d_tile, first, count, kv_heads, kv_head, shape);
}
