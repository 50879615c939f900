-- Capture triggers: native functions that turn a row change into an event (pgext/src/capture).
--
-- create trigger ... after insert or update or delete on t for each row execute function pgq.logutriga('queue', ...)
-- create trigger ... after truncate on t for each statement execute function pgq.logutriga('queue', ...)
-- They differ in how ev_type and ev_data are written: URL-encoded row, partial SQL, JSON.

create function pgq.logutriga() returns trigger
language c volatile as 'MODULE_PATHNAME', 'logutriga_wrapper';

create function pgq.sqltriga() returns trigger
language c volatile as 'MODULE_PATHNAME', 'sqltriga_wrapper';

create function pgq.jsontriga() returns trigger
language c volatile as 'MODULE_PATHNAME', 'jsontriga_wrapper';

-- pgcascade.check_capture_trigger()
--     Event trigger: expressions in trigger arguments run as the owner of the table (pgext/src/capture/expression.rs), so
--     only the owner may bring them; PostgreSQL lets everybody create triggers who has the TRIGGER privilege.
--     Errors: insufficient_privilege.
create function pgcascade.check_capture_trigger() returns event_trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    foreign_table record;
begin
    select c.oid::regclass as name, c.relowner::regrole as owner into foreign_table
      from pg_event_trigger_ddl_commands() d
      join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid
      join pg_proc p on p.oid = t.tgfoid
      join pg_class c on c.oid = t.tgrelid
     where p.pronamespace = 'pgq'::regnamespace and p.proname in ('logutriga', 'sqltriga', 'jsontriga')
       -- Arguments end in a zero byte each.
       and encode(t.tgargs, 'escape') ~ '\\000(when|ev_type|ev_data|ev_extra[1-4])='
       and not pg_has_role(current_user, c.relowner, 'usage')
     limit 1;
    if found then
        raise exception using errcode = 'insufficient_privilege',
            message = format('only the owner of table %s may give its capture trigger expressions', foreign_table.name),
            hint = format('Have role %s create the trigger, or leave out when=, ev_type=, ev_data= and ev_extraN=.',
                          foreign_table.owner);
    end if;
end
$$;

create event trigger pgcascade_capture_trigger on ddl_command_end when tag in ('CREATE TRIGGER')
    execute function pgcascade.check_capture_trigger();

comment on function pgcascade.check_capture_trigger() is 'event trigger: expressions of capture triggers only from the table''s owner';
comment on function pgq.logutriga() is 'capture trigger: row changes as URL-encoded events in the queue given as first argument';
comment on function pgq.sqltriga() is 'capture trigger: row changes as partial SQL in the queue given as first argument';
comment on function pgq.jsontriga() is 'capture trigger: row changes as JSON in the queue given as first argument';
