-- The events of one batch, as a leaf's journal has them (COLUMNS in journal.rs).
begin;
create temporary table donated (
    ev_id bigint, ev_txid bigint, ev_time timestamptz,
    ev_type bytea, ev_data bytea, ev_extra1 bytea, ev_extra2 bytea, ev_extra3 bytea, ev_extra4 bytea
) on commit drop
