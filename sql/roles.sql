-- Roles of the queue: who may read, who may write, who may administer.
--
-- Roles belong to the whole cluster, so a second database (or PgQ itself) may have made them already. They are then
-- used as they are, unless that would hand the queue to somebody who has more rights than a queue role needs: one that has
-- an attribute with which to get at other roles' data, or that owns anything in any database, was not made for this and is
-- refused. Nothing is granted to the roles here; that is grants.sql.

do $roles$
declare
    role_name text;
    wrong text;
begin
    -- Of two databases that install at the same time, the second waits here and finds the roles of the first.
    lock table pg_catalog.pg_authid in share row exclusive mode;
    foreach role_name in array array['pgq_reader', 'pgq_writer', 'pgq_admin'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = role_name) then
            execute format('create role %I nologin', role_name);
        end if;
        select case
            when r.rolsuper then 'is a superuser'
            when r.rolcreaterole then 'may create roles'
            when r.rolreplication then 'may replicate'
            when r.rolbypassrls then 'bypasses row security'
            when exists (select from pg_catalog.pg_shdepend d
                          where d.refclassid = 'pg_catalog.pg_authid'::regclass and d.refobjid = r.oid
                            and d.deptype = 'o') then 'owns objects' end
          into wrong from pg_catalog.pg_roles r where r.rolname = role_name;
        if wrong is not null then
            raise exception using
                errcode = 'duplicate_object',
                message = format('role "%s" exists and %s', role_name, wrong),
                hint = format('Rename it, or run ALTER ROLE %1$I NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS and, in '
                              'each database, REASSIGN OWNED BY %1$I; then create the extension again.', role_name);
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
