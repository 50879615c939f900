-- Roles of the queue: who may read, who may write, who may administer.
--
-- Roles belong to the whole cluster, so a second database (or PgQ itself) may have made them already. They are then
-- used as they are, unless using them would hand the queue to somebody who has more rights than a queue role needs:
-- a superuser under one of these names is refused. Nothing is granted to the roles here; that is grants.sql.

do $roles$
declare
    role_name text;
begin
    -- Of two databases that install at the same time, the second waits here and finds the roles of the first.
    lock table pg_catalog.pg_authid in share row exclusive mode;
    foreach role_name in array array['pgq_reader', 'pgq_writer', 'pgq_admin'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = role_name) then
            execute format('create role %I nologin', role_name);
        elsif exists (select from pg_catalog.pg_roles where rolname = role_name and rolsuper) then
            raise exception using
                errcode = 'duplicate_object',
                message = format('role "%s" exists and is a superuser', role_name),
                hint = format('Rename it, or run ALTER ROLE %I NOSUPERUSER, and create the extension again.', role_name);
        end if;
    end loop;

    -- An administrator of queues may read and write them too.
    foreach role_name in array array['pgq_reader', 'pgq_writer'] loop
        if not pg_catalog.pg_has_role('pgq_admin', role_name, 'member') then
            execute format('grant %I to pgq_admin', role_name);
        end if;
    end loop;
end
$roles$;
