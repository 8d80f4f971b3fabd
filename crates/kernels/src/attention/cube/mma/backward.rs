//! The backward kernels. Both compute the weights again from the scores and their log-sum-exp.

use cubecl::prelude::*;

use super::fragment::{Chunk, Pair, lane, plane_row};
use super::shape::{BLOCK, PlaneShape, first_column, number_at, row_of};
use super::tile::{
    add_weighted, load, load_numbers, load_rotated, scores_of, store, store_rotated_back, zeros,
};
use crate::attention::cube::tables::{beyond, keys_of_span, queries_of_span, tile_at};
use crate::cube::soft_cap::{slope_of_cap, soft_capped};

/// The gradient of the queries, `[t, h · e]`. A plane has 16 queries.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn query_gradient<E: Float>(
    q: &[Chunk<E>],
    k: &[Chunk<E>],
    v: &[Chunk<E>],
    cos: &[Chunk<f32>],
    sin: &[Chunk<f32>],
    tiles: &[u32],
    spans: &[u32],
    d_out: &[Chunk<E>],
    log_sums: &[f32],
    products: &[f32],
    dq: &mut [Pair<E>],
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
    let mut queries =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(rows * shape.stride()), 16usize);
    let mut d_tile =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(rows * shape.stride()), 16usize);
    let mut keys =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(columns * shape.stride()), 16usize);
    let mut values =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(columns * shape.stride()), 16usize);
    let mut sums = zeros(comptime!(shape.heads.width), shape);
    // In shared memory, because registers are scarce with heads of 128 elements.
    let mut row_log_sums = Shared::<[f32]>::new_slice(rows);
    let mut row_products = Shared::<[f32]>::new_slice(rows);
    load_numbers(log_sums, &mut row_log_sums, first, count, heads, head, rows, shape);
    load_numbers(products, &mut row_products, first, count, heads, head, rows, shape);

    load_rotated::<E>(q, cos, sin, &mut queries, first, count, heads, head, rows, unrolls, shape);
    load::<E>(d_out, &mut d_tile, first, count, heads, head, rows, unrolls, shape);
    for span in first_span..end_span {
        let (mut key, end, mut key_position) = keys_of_span(spans, span, position, count, window);
        while key < end {
            let key_count = min(columns, end - key);
            sync_cube();
            load_rotated::<E>(
                k, cos, sin, &mut keys, key, key_count, kv_heads, kv_head, columns, false, shape,
            );
            load::<E>(v, &mut values, key, key_count, kv_heads, kv_head, columns, false, shape);
            sync_cube();
            let scores = scores_of::<E>(&queries, &keys, shape);
            let mut gradients = scores_of::<E>(&d_tile, &values, shape);
            #[unroll(unrolls)]
            for row in 0..comptime!(shape.lane_rows()) {
                let query = plane_row(shape) + row_of(row, lane, shape);
                let end = position + query + 1;
                let first_key = beyond(end, key_position + window);
                let end_key = min(key_count, beyond(end, key_position));
                let log_sum = row_log_sums[query];
                let product = row_products[query];
                #[unroll(unrolls)]
                for block in 0..comptime!(shape.columns / BLOCK) {
                    #[unroll(unrolls)]
                    for column in 0..comptime!(shape.row_numbers()) {
                        let other = block * BLOCK + first_column(lane, shape) + column;
                        let is_seen = other >= first_key && other < end_key;
                        let at = number_at(row, block, column, shape);
                        let score = soft_capped(scores[at] * scale, softcap, is_capped);
                        let slope = slope_of_cap(score, softcap, is_capped);
                        let weight = weight_of(score, log_sum, is_seen);
                        gradients[at] = weight * (gradients[at] - product) * slope;
                    }
                }
            }
            add_weighted::<E>(&mut sums, &gradients, &keys, shape);
            key += columns;
            key_position += columns;
        }
    }
    store_rotated_back::<E>(dq, cos, sin, &sums, scale, first, count, heads, head, shape);
}

/// `exp(score − log_sum)` for a key that the query sees, else 0.
#[cube]
fn weight_of(score: f32, log_sum: f32, is_seen: bool) -> f32 {
    select(is_seen, (score - log_sum).exp(), 0.0f32)
}

/// The gradients of keys and values, both `[t, g · e]`. A cube has a tile of keys and a key-value
/// head, a plane 16 of the keys. The cube visits the queries that may see them, in all heads that
/// share the key-value head. Scores are transposed: a row is a key.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn key_value_gradients<E: Float>(
    q: &[Chunk<E>],
    k: &[Chunk<E>],
    v: &[Chunk<E>],
    cos: &[Chunk<f32>],
    sin: &[Chunk<f32>],
    tiles: &[u32],
    spans: &[u32],
    d_out: &[Chunk<E>],
    log_sums: &[f32],
    products: &[f32],
    dk: &mut [Pair<E>],
    dv: &mut [Pair<E>],
    heads: usize,
    kv_heads: usize,
    window: usize,
    scale: f32,
    softcap: f32,
    #[comptime] shape: PlaneShape,
    #[define(E)] _type: ElemType,
) {
    let kv_head = CUBE_POS % kv_heads;
    let (first, count, position, first_span, end_span) = tile_at(tiles, CUBE_POS / kv_heads);

    let rows = comptime!(shape.rows());
    let columns = comptime!(shape.columns);
    let unrolls = comptime!(shape.unrolls());
    let is_capped = comptime!(shape.heads.is_capped);
    let lane = lane(shape);
    let mut keys =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(rows * shape.stride()), 16usize);
    let mut values =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(rows * shape.stride()), 16usize);
    let mut queries =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(columns * shape.stride()), 16usize);
    let mut d_tile =
        Shared::<[Chunk<E>]>::new_aligned_slice(comptime!(columns * shape.stride()), 16usize);
    let mut column_log_sums = Shared::<[f32]>::new_slice(columns);
    let mut column_products = Shared::<[f32]>::new_slice(columns);
    let mut key_sums = zeros(comptime!(shape.heads.width), shape);
    let mut value_sums = zeros(comptime!(shape.heads.width), shape);

    load_rotated::<E>(
        k, cos, sin, &mut keys, first, count, kv_heads, kv_head, rows, unrolls, shape,
    );
    load::<E>(v, &mut values, first, count, kv_heads, kv_head, rows, unrolls, shape);
    let repeat = heads / kv_heads;
    for shared in 0..repeat {
        let head = kv_head * repeat + shared;
        for span in first_span..end_span {
            let (mut query, end, mut query_position) =
                queries_of_span(spans, span, position, count, window);
            while query < end {
                let query_count = min(columns, end - query);
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
                    columns,
                    false,
                    shape,
                );
                load::<E>(
                    d_out,
                    &mut d_tile,
                    query,
                    query_count,
                    heads,
                    head,
                    columns,
                    false,
                    shape,
                );
                load_numbers(
                    log_sums,
                    &mut column_log_sums,
                    query,
                    query_count,
                    heads,
                    head,
                    columns,
                    shape,
                );
                load_numbers(
                    products,
                    &mut column_products,
                    query,
                    query_count,
                    heads,
                    head,
                    columns,
                    shape,
                );
                sync_cube();
                let mut weights = scores_of::<E>(&keys, &queries, shape);
                let mut gradients = scores_of::<E>(&values, &d_tile, shape);
                #[unroll(unrolls)]
                for row in 0..comptime!(shape.lane_rows()) {
                    // The key is seen by the queries from `first_query` to `end_query`.
                    let key_position = position + plane_row(shape) + row_of(row, lane, shape);
                    let first_query = beyond(key_position, query_position);
                    let end_query = min(query_count, beyond(key_position + window, query_position));
                    #[unroll(unrolls)]
                    for block in 0..comptime!(shape.columns / BLOCK) {
                        #[unroll(unrolls)]
                        for column in 0..comptime!(shape.row_numbers()) {
                            let other = block * BLOCK + first_column(lane, shape) + column;
                            let is_seen = other >= first_query && other < end_query;
                            let at = number_at(row, block, column, shape);
                            let log_sum = column_log_sums[other];
                            let score = soft_capped(weights[at] * scale, softcap, is_capped);
                            let slope = slope_of_cap(score, softcap, is_capped);
                            let weight = weight_of(score, log_sum, is_seen);
                            let product = column_products[other];
                            weights[at] = weight;
                            gradients[at] = weight * (gradients[at] - product) * slope;
                        }
                    }
                }
                add_weighted::<E>(&mut value_sums, &weights, &d_tile, shape);
                add_weighted::<E>(&mut key_sums, &gradients, &queries, shape);
                query += columns;
                query_position += columns;
            }
        }
    }
    store_rotated_back::<E>(dk, cos, sin, &key_sums, scale, first, count, kv_heads, kv_head, shape);
    store::<E>(dv, &value_sums, first, count, kv_heads, kv_head, shape);
}
